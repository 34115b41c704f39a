"""``cargo cow stats``, ``gc``, ``verify``, ``init --warehouse`` and what doctor says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cargo_cow.errors import WarehouseMissing, WarehouseUnusable
from cargo_cow.warehouse import gc, housekeeping, stats, store
from tests.support.projects import SOURCE, cow, settle

from .conftest import FILES, Place, told

MONTH = 31 * gc.DAY


def _cow(project: Path, *arguments: str, status: int = 0, **extra: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "cargo_cow", *arguments, "--format", "json"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **extra},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture
def project(place: Place) -> Path:
    """Built twice: once kept, once given out."""
    project = place.project("main", FILES)
    place.build(project)
    shutil.rmtree(project / "target")
    place.build(project)
    return project


def test_stats(place: Place, project: Path) -> None:
    told = _cow(project, "stats", "--store", str(place.store))
    assert (told["hits"], told["misses"], told["kept"], told["entries"]) == (3, 3, 3, 3)
    assert told["missed"] == {"new": 3}
    assert told["reflinked_bytes"] > told["entries_bytes"] > 100_000
    assert told["copied_bytes"] == 0
    assert 0 < told["milliseconds_per_hit"] < 10_000
    assert told["seconds_saved"] > 0
    assert (told["failed"], told["let_go"]) == (0, 0)
    assert told["projects"] == [
        {"directory": str(project / "target/debug"), "hits": 3, "misses": 3}
    ]
    assert {(one["package"], one["reason"]) for one in told["missed_most"]} == {
        ("app 0.1.0", "new"),
        ("util 0.1.0", "new"),
    }
    # Which store it is follows from what builds use.
    again = _cow(project, "stats", CARGO_COW_WAREHOUSE=str(place.store))
    assert again == told


def test_what_is_saved_is_what_the_filesystem_shares(place: Place, project: Path) -> None:
    subprocess.run(["sync", "-f", project], check=True)
    told = _cow(project, "stats", "--store", str(place.store))
    disk = told["disk"]
    # All but what lies in the metadata is there once, for store and target.
    assert disk["targets"] == 1
    assert disk["saved_bytes"] == disk["shared_bytes"] > 0.9 * told["entries_bytes"]
    own = disk["exclusive_bytes"]  # what entries say of themselves
    assert own < 100_000
    assert disk["exact"]
    shutil.rmtree(project / "target")
    subprocess.run(["sync", "-f", place.store], check=True)
    alone = _cow(project, "stats", "--store", str(place.store))["disk"]
    assert (alone["shared_bytes"], alone["saved_bytes"], alone["targets"]) == (0, 0, 0)
    assert alone["exclusive_bytes"] == disk["shared_bytes"] + own
    assert _cow(project, "stats", "--no-disk", "--store", str(place.store))["disk"] is None


def test_an_entry_of_another_kind_is_taken_as_it_is(place: Place, project: Path) -> None:
    from blake3 import blake3

    other = place.store / "units/ab" / ("ab" * 32) / "1"
    other.mkdir(parents=True)
    line = json.dumps(
        {"created": 5, "kind": "unit", "outputs": [["x", 3, blake3(b"xyz").hexdigest()]]}
    )
    (other / "entry.json").write_text(f"{line}\n{blake3(line.encode()).hexdigest()}\n")
    (other / "0").write_bytes(b"xyz")
    where = ("--store", str(place.store))
    assert _cow(project, "stats", *where)["entries"] == 4
    assert _cow(project, "verify", *where)["damaged"] == []
    os.utime(other / "entry.json", (5, 5))
    (gone,) = _cow(project, "gc", "--yes", *where)["going"]
    assert (gone["crate"], gone["compile_seconds"]) == ("", 0.0)
    assert not other.exists()


def test_the_store_lets_go_by_itself(
    place: Place, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = time.time() - MONTH
    for entry in place.entries():
        os.utime(entry / "entry.json", (old, old))
    off = place.root / "gitconfig"
    off.write_text("[cargo-cow]\nwarehouseGc = false\n")
    with monkeypatch.context() as patched:
        patched.setenv("GIT_CONFIG_GLOBAL", str(off))
        assert housekeeping.tidy(place.store) is None
    assert len(place.entries()) == 3
    number = len(place.events())
    # A store that was just made asks nobody; one that was asked about long ago does.
    note = place.store / "tidied"
    os.utime(note, (old, old))
    script = place.root / "cargo-cow"
    command = f'PYTHONPATH={SOURCE} exec {sys.executable} -m cargo_cow "$@"'
    script.write_text(f"#!/bin/sh\n{command}\n")
    script.chmod(0o755)
    source = project / "util/src/inner.rs"
    source.write_text(source.read_text() + "// more\n")
    place.build(project, "build", "-p", "util", CARGO_COW_PROGRAM=str(script))
    until = time.monotonic() + 30
    while "tidied" not in {event["what"] for event in place.events()[number:]}:
        assert time.monotonic() < until, "it never tidied up"
        time.sleep(0.05)
    assert [entry.crate for entry in store.entries(place.store)] == ["util"]
    assert time.time() - note.stat().st_mtime < 60
    told = _cow(project, "stats", "--no-disk", "--store", str(place.store))
    assert told["let_go"] == 3


def test_reasons_are_counted_by_kind() -> None:
    def event(what: str, reason: str, **more: object) -> dict[str, Any]:
        return {"time": 5, "what": what, "reason": reason, **more}

    counted = stats.count(
        [
            event("miss", "file src/a.rs"),
            event("miss", "file src/b.rs"),
            event("miss", "new file x/mod.rs"),
            event("not-kept", "/w/src/a.rs: changed since the compile began"),
            event("hit", "", seconds=0.5, compile_seconds=2.0, copied=7, copied_reason="EXDEV"),
            {"what": "hit", "time": 1},
        ],
        since=2,
    )
    assert counted.missed == {"file differs": 2, "a new file": 1}
    assert counted.not_kept == {"changed since the compile began": 1}
    assert (counted.hits, counted.seconds_saved) == (1, 1.5)
    assert (counted.copied_bytes, counted.copied_reasons) == (7, {"EXDEV": 1})


def test_verify(place: Place, project: Path) -> None:
    where = ("--store", str(place.store))
    assert _cow(project, "verify", *where) == {
        "store": str(place.store),
        "entries": 3,
        "damaged": [],
    }
    victim = place.entries()[0] / "0"
    victim.chmod(0o600)
    victim.write_bytes(victim.read_bytes()[::-1])
    (place.entries()[1] / "entry.json").write_text("{}\n")
    found = _cow(project, "verify", *where, status=1)["damaged"]
    assert sorted(one["trouble"].partition(" has")[2] for one in found) == ["", " another content"]
    assert len(_cow(project, "verify", "--remove", *where, status=1)["damaged"]) == 2
    assert _cow(project, "verify", *where)["entries"] == 1


def test_gc_plans_and_then_acts(place: Place, project: Path) -> None:
    where = ("--store", str(place.store))
    # What was used just now stays, whatever the budget.
    assert _cow(project, "gc", "--budget", "1kB", "--yes", *where)["going"] == []
    old = time.time() - MONTH
    for entry in place.entries():
        os.utime(entry / "entry.json", (old, old))
    planned = _cow(project, "gc", *where)
    assert {one["reason"] for one in planned["going"]} == {"not used for 31 days"}
    assert (planned["done"], len(place.entries())) == (None, 3)
    done = _cow(project, "gc", "--yes", *where)["done"]
    assert (done["removed"], done["in_use"]) == (3, 0)
    assert place.entries() == []
    # No target needs an entry.
    assert told(project) == "u1 none"
    assert place.build(project, "build", "-p", "util").rustc == []


def test_gc_frees_what_it_says(place: Place, project: Path) -> None:
    shutil.rmtree(project / "target")
    subprocess.run(["sync", "-f", place.store], check=True)
    later = time.time() + 2 * gc.RECENT
    planned = gc.plan(place.store, store.entries(place.store), gc.Policy(budget=0), later)
    assert planned.staying == 0
    assert planned.frees == planned.exclusive > 100_000
    assert [one.reason for one in planned.going] == ["over the budget"] * 3


def test_gc_leaves_what_is_in_use(place: Place, project: Path) -> None:
    now = time.time() + MONTH
    planned = gc.plan(place.store, store.entries(place.store), gc.Policy(unused_for=gc.DAY), now)
    assert len(planned.going) == 3
    # A build takes one of them between plan and act.
    shutil.rmtree(project / "target")
    place.build(project, "build", "-p", "util")
    done = gc.carry_out(place.store, planned)
    assert (done.removed, done.in_use) == (2, 1)
    assert [entry.crate for entry in store.entries(place.store)] == ["util"]


def test_whole_units_are_entries_as_well(place: Place) -> None:
    project = place.project("main", FILES)
    environment = place.environment(CARGO_COW_KEEP="wait")
    settle()
    for _ in range(2):
        assert cow(project, place.scratch, "build", **environment).status == 0
        place.wait()
        shutil.rmtree(project / "target")
    subprocess.run(["sync", "-f", place.store], check=True)
    where = ("--store", str(place.store))
    told = _cow(project, "stats", *where)
    kept = store.entries(place.store)
    units = [entry for entry in kept if entry.kind == "unit"]
    calls = [entry for entry in kept if entry.kind == "call"]
    assert units
    assert calls
    assert told["grafted"] >= 1
    # Both hold the same data, which is on the disk once.
    alone = sum(entry.size for entry in calls)
    assert told["disk"]["exclusive_bytes"] < 1.2 * alone + 500_000
    assert told["disk"]["saved_bytes"] > 0.8 * alone
    later = time.time() + 2 * gc.RECENT
    both = gc.plan(place.store, kept, gc.Policy(unused_for=0), later)
    assert len(both.going) == len(kept)
    assert both.frees == told["disk"]["exclusive_bytes"]
    only = gc.plan(place.store, kept, gc.Policy(unused_for=None, budget=0), later)
    assert sum(one.alone for one in only.going) == only.frees == both.frees
    # A unit's calls are what can be compiled again.
    outcomes = _cow(project, "verify", "--recompile", *where)["recompiled"]
    tried = {one["crate"]: one["verdict"] for one in outcomes if one["verdict"] != "not-tried"}
    assert set(tried) == {"app", "build_script_build", "util"}
    assert sum("whole unit" in one["why"] for one in outcomes) == len(units)


def test_a_gc_that_is_killed_leaves_a_store_that_works(
    place: Place, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time() + MONTH
    planned = gc.plan(place.store, store.entries(place.store), gc.Policy(), now)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            gc.carry_out(place.store, planned)
    # The one that was going is no entry any more, whole as its files are.
    assert [entry.trouble for entry in store.entries(place.store)] == [None, None]
    (left,) = place.store.glob("making/*")
    again = gc.plan(place.store, [], gc.Policy(), time.time() + 3_600)
    assert again.leftovers == (left,)
    gc.carry_out(place.store, again)
    assert not left.exists()


def test_what_a_killed_process_left_goes(place: Place, project: Path) -> None:
    left = place.store / "making" / "1-2"
    left.mkdir(parents=True)
    later = time.time() + 3_600
    assert store.leftovers(place.store, time.time()) == []
    assert store.leftovers(place.store, later) == [left]
    descriptor = os.open(left, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert store.leftovers(place.store, later) == []
    finally:
        os.close(descriptor)
    gc.carry_out(place.store, gc.plan(place.store, [], gc.Policy(), later))
    assert not left.exists()


def test_which_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo-home"))
    with pytest.raises(WarehouseMissing, match="switched off"):
        store.locate(None, tmp_path)
    with pytest.raises(WarehouseMissing):
        store.locate(None, tmp_path, str(tmp_path / "nowhere"))
    (tmp_path / "other").mkdir(mode=0o700)
    with pytest.raises(WarehouseUnusable, match="no warehouse"):
        store.locate(None, tmp_path, str(tmp_path / "other"))
    (tmp_path / "other" / "CACHEDIR.TAG").touch()
    assert store.locate(None, tmp_path, str(tmp_path / "other")) == tmp_path / "other"
    (tmp_path / "other").chmod(0o755)
    with pytest.raises(WarehouseUnusable, match="not yours alone"):
        store.locate(None, tmp_path, str(tmp_path / "other"))


def test_init_switches_it_on_and_uninstall_off(place: Place) -> None:
    project = place.project("main", FILES)
    cache = str(place.root / "cache")
    Path(cache).mkdir()
    file = Path(os.environ["CARGO_HOME"]) / "config.toml"
    file.parent.mkdir()
    file.write_text("# mine\n")
    _cow(project, "init")
    assert "CARGO_COW_WAREHOUSE" not in file.read_text()
    _cow(project, "init", "--warehouse")
    assert 'CARGO_COW_WAREHOUSE = "on"' in file.read_text()
    assert _cow(project, "init", "--warehouse")["steps"] == []
    for _ in range(2):
        subprocess.run(
            ["cargo", "build", "-q"],
            cwd=project,
            check=True,
            env={**os.environ, "XDG_CACHE_HOME": cache},
        )
        # Keeping goes on after the build.
        until = time.monotonic() + 30
        while len(list(Path(cache).glob("cargo-cow/warehouse/units/*/*/*/entry.json"))) < 3:
            assert time.monotonic() < until, "it is never kept"
            time.sleep(0.05)
        shutil.rmtree(project / "target")
    assert _cow(project, "stats", XDG_CACHE_HOME=cache)["hits"] == 3
    (check,) = [
        one
        for one in _cow(project, "doctor", XDG_CACHE_HOME=cache)["checks"]
        if one["name"] == "warehouse"
    ]
    assert (check["status"], "shares data" in check["found"]) == ("ok", True)
    _cow(project, "uninstall")
    assert file.read_text() == "# mine\n"
