"""``init`` and ``uninstall``: what Cargo then does, and that all of it goes away again."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.cli.conftest import FILES, Cow
from tests.support.projects import git, repository

from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.setup import notes

MINE = """# my own settings
[build]
rustc-wrapper = "sccache"   # a cache
jobs = 2

# how to reach things
[net]
retry = 3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that was never built, and the working directory."""
    root = repository(tmp_path / "project", FILES)
    monkeypatch.chdir(root)
    return root


def everything_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def wrapper(file: Path) -> str | None:
    value = tomllib.loads(file.read_text()).get("build", {}).get("rustc-wrapper")
    assert value is None or isinstance(value, str)
    return value


def test_there_and_back_without_a_configuration(
    cow: Cow, project: Path, cargo_home: Path, program: Path
) -> None:
    before = everything_below(cargo_home)
    dry = cow("init", "--dry-run")
    assert (dry.status, everything_below(cargo_home)) == (0, before)
    assert not notes.place().exists()
    assert "would set" in dry.out
    assert cow("init").status == 0
    assert wrapper(cargo_home / "config.toml") == str(program)
    assert cow("uninstall", "--dry-run").status == 0
    assert wrapper(cargo_home / "config.toml") == str(program)
    assert cow("uninstall").status == 0
    assert everything_below(cargo_home) == before
    assert not notes.place().exists()
    again = cow("uninstall")
    assert (again.status, "nothing to take back" in again.out) == (0, True)


def test_there_and_back_with_a_chained_wrapper(
    cow: Cow, project: Path, cargo_home: Path, program: Path
) -> None:
    file = cargo_home / "config.toml"
    file.write_text(MINE)
    assert "through sccache" in cow("init").out
    values = tomllib.loads(file.read_text())
    assert values["build"] == {"rustc-wrapper": str(program), "jobs": 2}
    assert values["env"] == {"CARGO_COW_CHAIN": "sccache"}
    for comment in ("# my own settings", "# a cache", "# how to reach things"):
        assert comment in file.read_text()
    assert notes.place().stat().st_mode & 0o077 == 0
    cow("uninstall")
    assert file.read_text() == MINE


REPLACED = {"CARGO_COW_REPLACED": "sccache"}
CHAINED = {"CARGO_COW_CHAIN": "sccache"}


def test_a_wrapper_that_is_replaced(
    cow: Cow, project: Path, cargo_home: Path, program: Path
) -> None:
    file = cargo_home / "config.toml"
    file.write_text(MINE)
    ran = cow("init", "--wrapper-found", "replace")
    assert "instead of sccache" in ran.out
    assert "sccache is not called any more" in ran.err
    values = tomllib.loads(file.read_text())
    assert (values["build"]["rustc-wrapper"], values["env"]) == (str(program), REPLACED)
    # Who says nothing of it later keeps what was chosen.
    assert "nothing to change" in cow("init").out
    assert "nothing to change" in cow("init", "--wrapper-found", "replace").out
    assert cow("uninstall").status == 0
    assert file.read_text() == MINE
    assert not notes.place().exists()


def test_what_was_chosen_can_be_changed(cow: Cow, project: Path, cargo_home: Path) -> None:
    file = cargo_home / "config.toml"
    file.write_text(MINE)
    for choice, expected in (
        ("chain", CHAINED),
        ("replace", REPLACED),
        ("chain", CHAINED),
        ("replace", REPLACED),
    ):
        assert cow("init", "--wrapper-found", choice).status == 0
        assert tomllib.loads(file.read_text())["env"] == expected
    kept = cow("init", "--wrapper-found", "keep")
    assert "nothing to change" in kept.out
    assert cow("uninstall").status == 0
    assert file.read_text() == MINE


@pytest.mark.parametrize("lost", [True, False])
def test_a_replaced_wrapper_comes_back_after_edits(
    cow: Cow, project: Path, cargo_home: Path, lost: bool
) -> None:
    """Without the note, too: the configuration itself says what was replaced."""
    file = cargo_home / "config.toml"
    file.write_text(MINE)
    cow("init", "--wrapper-found", "replace")
    file.write_text(file.read_text().replace("retry = 3", "retry = 5"))
    if lost:
        notes.place().unlink()
    assert cow("uninstall").status == 0
    expected = tomllib.loads(MINE)
    expected["net"]["retry"] = 5
    assert tomllib.loads(file.read_text()) == expected


def test_a_wrapper_that_is_kept(
    cow: Cow, project: Path, cargo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cargo_home / "config.toml"
    file.write_text(MINE)
    ran = cow("init", "--wrapper-found", "keep")
    assert (ran.status, file.read_text()) == (0, MINE)
    assert "sccache stays the wrapper" in ran.err
    file.unlink()
    monkeypatch.setenv("RUSTC_WRAPPER", "/opt/kache")
    ran = cow("init", "--wrapper-found", "keep")
    assert "kache stays the wrapper" in ran.err
    assert "unset" not in ran.err
    assert not file.exists()
    # Where there is nothing to keep, ours is set.
    monkeypatch.delenv("RUSTC_WRAPPER")
    assert cow("init", "--wrapper-found", "keep").status == 0
    assert wrapper(file)


def test_one_choice_for_the_user_another_for_a_project(
    cow: Cow, project: Path, cargo_home: Path, program: Path
) -> None:
    user, own = cargo_home / "config.toml", project / ".cargo/config.toml"
    user.write_text(MINE)
    # The user's is not called here any more, and is not ours to put back.
    assert cow("init", "--project", "--wrapper-found", "replace").status == 0
    assert wrapper(own) == str(program)
    assert "env" not in tomllib.loads(own.read_text())
    assert user.read_text() == MINE
    cow("uninstall")
    # What the user's says of the wrapper behind ours is said there, for all projects.
    cow("init")
    ran = cow("init", "--project", "--wrapper-found", "replace")
    assert f"{user} says what becomes of sccache" in ran.err
    assert tomllib.loads(user.read_text())["env"] == CHAINED


def test_the_warehouse_behind_another_wrapper_is_remarked_on(
    cow: Cow, project: Path, cargo_home: Path
) -> None:
    (cargo_home / "config.toml").write_text(MINE)
    cow("init")
    ran = cow("init", "--warehouse")
    assert "the warehouse keeps and gives nothing" in ran.err
    assert "--wrapper-found replace" in ran.err


def test_a_variable_that_the_environment_sets_is_named(
    cow: Cow, project: Path, cargo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUSTC_WRAPPER", "mbx")
    monkeypatch.setenv("CARGO_COW_CHAIN", "mbx")
    ran = cow("init", "--wrapper-found", "replace")
    assert "unset RUSTC_WRAPPER" in ran.err
    assert "unset CARGO_COW_CHAIN" in ran.err
    assert "export" not in ran.err


def test_twice_changes_nothing(cow: Cow, project: Path, cargo_home: Path, tmp_path: Path) -> None:
    (cargo_home / "config.toml").write_text(MINE)
    (project / "target").mkdir()
    cow("init")
    before = everything_below(tmp_path)
    second = cow("init")
    assert (second.status, "nothing to change" in second.out) == (0, True)
    assert everything_below(tmp_path) == before


def test_another_installation_takes_over(
    cow: Cow, project: Path, cargo_home: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cargo_home / "config.toml"
    file.write_text(MINE)
    cow("init")
    second = program.parent / "other" / "cargo-cow-native"
    second.parent.mkdir()
    program.rename(second)
    monkeypatch.setenv("CARGO_COW_NATIVE", str(second))
    assert cow("init").status == 0
    assert wrapper(file) == str(second)
    assert tomllib.loads(file.read_text())["env"] == {"CARGO_COW_CHAIN": "sccache"}
    cow("uninstall")
    assert file.read_text() == MINE


def test_later_edits_survive_uninstall(cow: Cow, project: Path, cargo_home: Path) -> None:
    file = cargo_home / "config.toml"
    file.write_text(MINE)
    cow("init")
    # Between the two passages that init wrote, so that neither stands as it was.
    file.write_text(file.read_text().replace("retry = 3", "retry = 5"))
    assert cow("uninstall").status == 0
    expected = tomllib.loads(MINE)
    expected["net"]["retry"] = 5
    assert tomllib.loads(file.read_text()) == expected
    assert "# a cache" in file.read_text()
    assert not notes.place().exists()


def test_a_wrapper_set_instead_of_ours_stays(cow: Cow, project: Path, cargo_home: Path) -> None:
    file = cargo_home / "config.toml"
    file.write_text(MINE)
    cow("init")
    file.write_text(file.read_text().replace(str(wrapper(file)), "another"))
    assert cow("uninstall").status == 0
    values = tomllib.loads(file.read_text())
    assert values == {"build": {"rustc-wrapper": "another", "jobs": 2}, "net": {"retry": 3}}
    assert "nothing to take back" in cow("uninstall").out


def test_a_lost_note(cow: Cow, project: Path, cargo_home: Path) -> None:
    file = cargo_home / "config.toml"
    file.write_text(MINE)
    cow("init")
    notes.place().unlink()
    assert "by hand it seems" in cow("uninstall").out
    assert tomllib.loads(file.read_text()) == tomllib.loads(MINE)


@pytest.mark.parametrize("text", [b"", b"{", b'{"format": 2}', b'{"format": 1, "changes": [3]}'])
def test_a_damaged_note_is_an_error(text: bytes, cow: Cow, project: Path, cargo_home: Path) -> None:
    cow("init")
    before = everything_below(cargo_home)
    notes.place().write_bytes(text)
    ran = cow("uninstall")
    assert ran.status == 13
    assert "hint:" in ran.err
    assert everything_below(cargo_home) == before


def test_killed_between_the_note_and_the_change(
    cow: Cow, project: Path, cargo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cargo_cow.cargo import configuration

    file = cargo_home / "config.toml"
    file.write_text(MINE)
    with monkeypatch.context() as patch:

        def kill(_: object) -> None:
            # As a kill: what is noted stays noted.
            patch.setattr(notes, "save", lambda _: None)
            raise KeyboardInterrupt

        patch.setattr(configuration, "apply", kill)
        assert cow("init").status == 130
    assert len(notes.load().changes) == 1
    assert file.read_text() == MINE
    assert cow("uninstall").status == 0
    assert file.read_text() == MINE
    assert not notes.place().exists()


def test_project_configuration(
    cow: Cow, project: Path, cargo_home: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cargo_home / "config.toml").write_text(MINE)
    monkeypatch.chdir(project / "src")
    assert "through sccache" in cow("init", "--project").out
    file = project / ".cargo" / "config.toml"
    assert wrapper(file) == str(program)
    assert (cargo_home / "config.toml").read_text() == MINE
    assert "nothing to change" in cow("init", "--project").out
    cow("uninstall")
    assert not file.parent.exists()
    assert git(project, "status", "--porcelain", "-uall") == ""


def test_a_stronger_file_is_named(cow: Cow, project: Path, cargo_home: Path) -> None:
    (project / ".cargo").mkdir()
    (project / ".cargo" / "config.toml").write_text("[build]\nrustc-wrapper = 'kept'\n")
    ran = cow("init")
    assert ran.status == 0
    assert "is stronger here: cargo cow init --project" in ran.err
    assert wrapper(project / ".cargo" / "config.toml") == "kept"
    assert "CARGO_COW_CHAIN" not in (cargo_home / "config.toml").read_text()


@pytest.mark.parametrize("name", ["RUSTC_WRAPPER", "CARGO_BUILD_RUSTC_WRAPPER"])
def test_a_stronger_variable_is_named(
    name: str, cow: Cow, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "sccache")
    ran = cow("init")
    assert f"unset {name}" in ran.err
    assert "export CARGO_COW_CHAIN=sccache" in ran.err


def test_a_program_of_another_name_is_not_chained_to_itself(
    cow: Cow, project: Path, cargo_home: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = program.with_name("shim")
    program.rename(other)
    monkeypatch.setenv("CARGO_COW_NATIVE", str(other))
    cow("init")
    assert "nothing to change" in cow("init").out
    assert "CARGO_COW_CHAIN" not in (cargo_home / "config.toml").read_text()


@pytest.mark.parametrize("text", ["[build\n", "build = 1\n", "a = 1\na = 2\n"])
def test_an_unusable_configuration_is_left_alone(
    text: str, cow: Cow, project: Path, cargo_home: Path, tmp_path: Path
) -> None:
    (cargo_home / "config.toml").write_text(text)
    before = everything_below(tmp_path)
    ran = cow("init")
    assert ran.status in {11, 13}  # 11: Cargo was asked first, and says where
    assert str(cargo_home / "config.toml") in ran.err
    assert "hint:" in ran.err
    assert everything_below(tmp_path) == before


def test_a_read_only_configuration_is_left_alone(
    cow: Cow, project: Path, cargo_home: Path, tmp_path: Path
) -> None:
    file = cargo_home / "config.toml"
    file.write_text(MINE)
    file.chmod(0o444)
    before = everything_below(tmp_path)
    ran = cow("init")
    assert ran.status == 13
    assert "read-only" in ran.err
    assert everything_below(tmp_path) == before
    assert not notes.place().exists()


def test_state_that_cannot_be_noted_changes_nothing(
    cow: Cow, project: Path, cargo_home: Path, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file, not a directory")
    ran = cow("init")
    assert ran.status == 13
    assert "XDG_STATE_HOME" in ran.err
    assert everything_below(cargo_home) == {}


def test_outside_a_project(
    cow: Cow, cargo_home: Path, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    ran = cow("init", "--project")
    assert ran.status == 10
    assert everything_below(cargo_home) == {}
    ran = cow("init")
    assert ran.status == 0
    assert "no Cargo project here" in ran.err
    assert wrapper(cargo_home / "config.toml") == str(program)
    assert cow("uninstall").status == 0


def test_a_missing_program_changes_nothing(
    cow: Cow, project: Path, cargo_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARGO_COW_NATIVE", str(tmp_path / "nowhere"))
    assert cow("init").status == 50
    assert everything_below(cargo_home) == {}


def test_checkouts_that_were_built_are_marked(cow: Cow, project: Path, tmp_path: Path) -> None:
    for name in ("built", "new"):
        git(project, "worktree", "add", "-q", str(tmp_path / name))
    (tmp_path / "built" / "target").mkdir()
    cow("init")
    administration = project / ".git" / "worktrees"
    assert (administration / "built/cargo-cow/seeded").is_file()
    assert not (administration / "new/cargo-cow/seeded").exists()
    assert not (project / ".git/cargo-cow").exists()
    cow("uninstall")
    assert not (administration / "built/cargo-cow").exists()


def test_the_target_becomes_a_subvolume(
    cow: Cow,
    btrfs: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: Callable[[str], NoReturn],
) -> None:
    from cargo_cow import native
    from cargo_cow.errors import NativeMissing

    monkeypatch.delenv("CARGO_COW_NATIVE")
    try:
        native.version()
    except NativeMissing as error:
        missing(str(error))
    root = repository(btrfs / "project", FILES)
    monkeypatch.chdir(root)
    subprocess.run(["cargo", "build", "-q"], check=True)
    lock = (root / "target/debug/.cargo-lock").stat()
    assert "mark-built" in [
        step["action"] for step in cow("init", "-n", "--format", "json").json()["steps"]
    ]
    assert cow("init", "--no-convert").status == 0
    assert not subvolumes.is_subvolume(root / "target")
    ran = cow("init", "--format", "json")
    assert [step["action"] for step in ran.json()["steps"]] == ["convert-target"]
    assert ran.json()["steps"][0]["done"]
    assert subvolumes.is_subvolume(root / "target")
    assert (root / "target/debug/.cargo-lock").stat().st_mtime_ns == lock.st_mtime_ns
    built = subprocess.run(["cargo", "build", "-v"], capture_output=True, text=True, check=True)
    assert "Fresh tiny" in built.stderr
    cow("uninstall", "--purge")
    built = subprocess.run(["cargo", "build", "-v"], capture_output=True, text=True, check=True)
    assert "Fresh tiny" in built.stderr
    left = [
        path
        for path in (root / "target").rglob("*")
        if path.name.startswith(("cow-", ".cargo-cow"))
    ]
    assert left == []


def test_the_main_target_and_this_one_are_converted(
    cow: Cow, btrfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(btrfs / "project", FILES)
    for name in ("one", "two"):
        git(root, "worktree", "add", "-q", str(btrfs / name))
        (btrfs / name / "target").mkdir()
    (root / "target").mkdir()
    monkeypatch.chdir(btrfs / "two")
    steps = cow("init", "-n", "--format", "json").json()["steps"]
    assert [step["path"] for step in steps if step["action"] == "convert-target"] == [
        str(root / "target"),
        str(btrfs / "two" / "target"),
    ]


def test_a_running_build_postpones_the_conversion(
    cow: Cow, btrfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    root = repository(btrfs / "project", FILES)
    monkeypatch.chdir(root)
    (root / "target/debug/.fingerprint").mkdir(parents=True)
    with (root / "target/debug/.cargo-lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = cow("init")
    assert ran.status == 1
    assert "a build is running" in ran.err
    assert not subvolumes.is_subvolume(root / "target")


def test_purge_keeps_what_is_not_ours(cow: Cow, project: Path) -> None:
    unit = project / "target/debug/.fingerprint/tiny-0123456789abcdef"
    unit.mkdir(parents=True)
    for name in (
        "cow-record.json",
        "cow-observed.json",
        "cow-asked.json",
        "lib-tiny",
        "invoked.timestamp",
    ):
        (unit / name).write_text("")
    (project / "target/.cargo-cow").mkdir()
    (project / "target/.cargo-cow/prepared.json").write_text("{}")
    (project / "cow-mine.json").write_text("")
    cow("uninstall")
    assert len(list(unit.iterdir())) == 5
    assert cow("uninstall", "--purge").status == 0
    assert sorted(path.name for path in unit.iterdir()) == ["invoked.timestamp", "lib-tiny"]
    assert not (project / "target/.cargo-cow").exists()
    assert (project / "cow-mine.json").exists()


def test_cargo_calls_the_program_with_the_chain(
    cow: Cow, project: Path, cargo_home: Path, tmp_path: Path
) -> None:
    """[env] reaches the probe as well as the compile: the chain works from the first call."""
    (cargo_home / "config.toml").write_text('[build]\nrustc-wrapper = "bin/mine"\n')
    cow("init")
    subprocess.run(["cargo", "build", "-q", "--offline"], check=True)
    calls = (tmp_path / "called").read_text().splitlines()
    assert any(call.endswith(" -vV") for call in calls)
    assert any("--crate-name tiny" in call for call in calls)
    chain = f"{tmp_path}/bin/mine "
    assert all(call.startswith(chain) for call in calls)


def test_json_holds_paths_that_are_not_utf8(
    cow: Cow, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / os.fsdecode(b"na\xefve")
    odd.mkdir()
    monkeypatch.setenv("CARGO_HOME", os.fspath(odd))
    monkeypatch.chdir(tmp_path)
    ran = cow("init", "--format", "json", "-n")
    (step,) = json.loads(ran.out)["steps"]
    import base64

    assert base64.b64decode(step["path_base64"]) == os.fsencode(odd / "config.toml")
    assert "\\xef" in cow("init", "-n").out
    assert cow("init").status == 0
    assert cow("uninstall").status == 0
    assert list(odd.iterdir()) == []
