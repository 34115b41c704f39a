"""``doctor``: each check has a test in which it does not pass."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import FILES, Cow, Ran
from tests.support.projects import git, repository


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = repository(tmp_path / "project", FILES)
    monkeypatch.chdir(root)
    return root


def by_name(ran: Ran) -> dict[str, Any]:
    found: list[dict[str, Any]] = ran.json()["checks"]
    for check in found:
        # What is not well says what is lost, and how to mend it.
        assert (check["status"] == "ok") == (not check["mend"]), check
        assert check["status"] == "ok" or check["lost"], check
    return {check["name"]: check for check in found}


def doctor(cow: Cow) -> dict[str, Any]:
    return by_name(cow("doctor", "--format", "json"))


def test_all_is_well(cow: Cow, btrfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cargo_cow import filesystems

    root = repository(btrfs / "project", FILES)
    git(root, "worktree", "add", "-q", str(btrfs / "other"))
    monkeypatch.chdir(root)
    filesystems.create_target(root / "target")
    subprocess.run(["cargo", "build", "-q"], check=True)
    (root / "target/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    assert cow("init").status == 0
    ran = cow("doctor")
    assert ran.status == 0
    lines = [line for line in ran.out.splitlines() if not line.startswith("ok ")]
    assert [line for line in lines if "namespaces" not in line and line[0] != " "] == []
    found = doctor(cow)
    assert found["filesystem"]["found"] == "btrfs: targets are cloned by snapshot"
    assert found["checkouts"]["found"] == "2, which can share extents"
    assert "layout legacy" in found["formats"]["found"] or "new" in found["formats"]["found"]


def test_outside_a_project(cow: Cow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cow("doctor", "--format", "json")
    assert ran.status == 0
    assert by_name(ran)["project"]["status"] == "warn"


def test_no_tools(cow: Cow, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    ran = cow("doctor", "--format", "json")
    assert ran.status == 1
    found = by_name(ran)
    assert {name: found[name]["status"] for name in ("cargo", "rustc", "git")} == {
        "cargo": "fail",
        "rustc": "fail",
        "git": "warn",
    }


def test_the_native_program(
    cow: Cow, project: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text('#!/bin/sh\necho \'{"name":"x","version":"9","protocol":2}\'\n')
    assert "protocol 2" in doctor(cow)["native"]["found"]
    program.unlink()
    ran = cow("doctor", "--format", "json")
    assert (ran.status, by_name(ran)["native"]["status"]) == (1, "fail")


@pytest.mark.parametrize("variable", ["RUSTC_WORKSPACE_WRAPPER", ""])
def test_a_wrapper_around_the_members(
    cow: Cow, project: Path, cargo_home: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    cow("init")
    assert "workspace wrapper" not in doctor(cow)
    if variable:
        monkeypatch.setenv(variable, "/opt/kache")
    else:
        (project / ".cargo").mkdir()
        (project / ".cargo/config.toml").write_text(
            "[build]\nrustc-workspace-wrapper = '/opt/kache'\n"
        )
    found = doctor(cow)["workspace wrapper"]["found"]
    assert "sets kache around the workspace's own packages" in found
    assert "sets kache around" in cow("init").err


def test_the_wrapper(
    cow: Cow, project: Path, cargo_home: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor(cow)["wrapper"]["mend"] == "cargo cow init"
    file = cargo_home / "config.toml"
    file.write_text("[build]\nrustc-wrapper = 'sccache'\n")
    assert "sets sccache" in doctor(cow)["wrapper"]["found"]
    assert "--wrapper-found replace: instead of it" in doctor(cow)["wrapper"]["mend"]
    monkeypatch.setenv("RUSTC_WRAPPER", "my sccache")
    assert doctor(cow)["wrapper"]["mend"] == (
        "unset RUSTC_WRAPPER; export CARGO_COW_CHAIN='my sccache'; cargo cow init"
    )
    monkeypatch.delenv("RUSTC_WRAPPER")
    cow("init")
    found = doctor(cow)
    assert found["wrapper"]["status"] == "ok"
    assert found["chained wrapper"]["status"] == "fail"  # there is no sccache here
    (program.parent / "sccache").write_text("#!/bin/sh\n")
    (program.parent / "sccache").chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    chained = doctor(cow)["chained wrapper"]
    assert (chained["status"], chained["lost"]) == ("ok", "")
    assert "the warehouse keeps and gives nothing" in chained["found"]
    cow("init", "--warehouse")
    chained = doctor(cow)["chained wrapper"]
    assert chained["status"] == "warn"
    assert chained["mend"] == "cargo cow init --wrapper-found replace"
    cow("init", "--wrapper-found", "replace")
    assert "chained wrapper" not in doctor(cow)
    assert "sccache, which cargo cow uninstall" in doctor(cow)["replaced wrapper"]["found"]
    (program.parent / "two").mkdir()
    other = program.parent / "two" / "cargo-cow-native"
    other.write_bytes(program.read_bytes())
    other.chmod(0o755)
    monkeypatch.setenv("CARGO_COW_NATIVE", str(other))
    assert "another installation" in doctor(cow)["wrapper"]["lost"]
    program.unlink()
    assert doctor(cow)["wrapper"]["status"] == "fail"
    file.write_text("[build\n")
    ran = cow("doctor", "--format", "json")
    assert ran.status == 1
    found = by_name(ran)
    assert found["wrapper"]["status"] == "fail"
    assert found["project"]["status"] == "fail"


def test_a_filesystem_that_cannot_share(
    cow: Cow, ext4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(ext4 / "project", FILES)
    git(root, "worktree", "add", "-q", str(ext4 / "other"))
    monkeypatch.chdir(root)
    found = doctor(cow)
    assert found["filesystem"]["status"] == "warn"
    assert "ext4 cannot share extents" in found["filesystem"]["found"]
    assert found["checkouts"]["status"] == "warn"
    assert "snapshot-ready" not in found


def test_reflinks_without_snapshots(cow: Cow, xfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository(xfs / "project", FILES))
    assert "by reflink" in doctor(cow)["filesystem"]["found"]


def test_checkouts_on_two_filesystems(
    cow: Cow, btrfs: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(btrfs / "project", FILES)
    git(root, "worktree", "add", "-q", str(xfs / "other"))
    monkeypatch.chdir(root)
    assert f"no extents can be shared with {xfs / 'other'}" in doctor(cow)["checkouts"]["found"]


def test_an_ordinary_target_on_btrfs(
    cow: Cow, btrfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(btrfs / "project", FILES)
    monkeypatch.chdir(root)
    (root / "target").mkdir()
    found = doctor(cow)
    assert found["snapshot-ready"]["mend"] == "cargo cow init"
    mend = found["CACHEDIR.TAG"]["mend"]
    subprocess.run(["sh", "-c", mend], check=True)
    assert "CACHEDIR.TAG" not in doctor(cow)


def test_stale_temporaries(cow: Cow, project: Path) -> None:
    (project / "target").mkdir()
    stale = project / ".target.cow-1-0123456789ab"
    stale.mkdir()
    mend = doctor(cow)["temporaries"]["mend"]
    assert mend == f"rm -rf {shlex.quote(str(stale))}"
    stale.rmdir()
    assert "temporaries" not in doctor(cow)


def test_units_of_an_unknown_form(cow: Cow, project: Path) -> None:
    subprocess.run(["cargo", "build", "-q", "--offline"], check=True)
    assert doctor(cow)["formats"]["status"] == "ok"
    (found,) = project.glob("target/debug/.fingerprint/*/dep-lib-*")
    found.write_bytes(b"\x01\x00\x00\x00\xff\x63rest")
    assert doctor(cow)["formats"]["status"] == "warn"


def test_a_target_of_all_checkouts(
    cow: Cow, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(project, "worktree", "add", "-q", str(tmp_path / "other"))
    monkeypatch.setenv("CARGO_TARGET_DIR", str(tmp_path / "shared"))
    assert "2 checkouts build in one target" in doctor(cow)["checkouts"]["found"]


def test_a_symlinked_target(cow: Cow, project: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (project / "target").symlink_to(tmp_path / "real")
    assert doctor(cow)["target"]["status"] == "warn"


def test_a_package_without_git(cow: Cow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.projects import write

    write(tmp_path / "plain", FILES)
    monkeypatch.chdir(tmp_path / "plain")
    assert doctor(cow)["checkouts"]["status"] == "warn"
