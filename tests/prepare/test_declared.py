"""What a manifest declares counts, because nobody can see that it is read."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.support.projects import Build, cargo, cow, git, repository, settle, write
from tests.support.unseen import CHANGES, DECLARED, FIRST, files

from cargo_cow import native
from cargo_cow.prepare import declared
from cargo_cow.prepare.contents import Contents

pytestmark = pytest.mark.usefixtures("x86_64")


def _project(root: Path, contents: dict[str, str]) -> Path:
    made = repository(root, contents)
    subprocess.run(["cargo", "generate-lockfile", "--offline", "-q"], cwd=made, check=True)
    git(made, "add", "-A")
    git(made, "commit", "-qm", "lock")
    settle()
    return made


def _build(root: Path, scratch: Path, shim: str, **extra: str) -> Build:
    settle()
    if shim == "shim":
        extra |= {"RUSTC_WRAPPER": str(native.program()), "CARGO_COW_SEEDING": "1"}
    else:
        extra |= {"CARGO_COW_IDENTITY": "off"}
    built = cow(root, scratch, "build", "-v", **extra)
    assert built.status == 0, built.output
    return built


def _told(root: Path) -> str:
    program = root / "target/debug/app"
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.strip()


def _change(root: Path, changes: dict[str, str | None]) -> None:
    settle()
    for name, text in changes.items():
        if text is None:
            (root / name).unlink()
        else:
            write(root, {name: text})


@pytest.fixture(autouse=True)
def _no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGION", raising=False)


@pytest.mark.parametrize("shim", ["shim", "no shim"])
@pytest.mark.parametrize("where", ["in place", "worktree"])
def test_what_is_declared_differs(btrfs: Path, tmp_path: Path, shim: str, where: str) -> None:
    main = _project(btrfs / "main", files())
    _build(main, tmp_path, shim)
    assert _told(main) == FIRST
    assert _build(main, tmp_path, shim).rustc == []
    assert _build(main, tmp_path, shim).rustc == []  # by the note alone
    for number, (changes, extra, expected) in enumerate(CHANGES):
        root = main
        if where == "worktree":
            root = btrfs / str(number)
            git(main, "worktree", "add", "-q", "--detach", str(root))
        before = {name: (root / name).read_text() for name in changes if (root / name).exists()}
        _change(root, changes)
        # What the workspace declares is of all its members.
        wanted = ["app", "unseen"] if "shared" in changes else ["app"]
        assert _build(root, tmp_path, shim, **extra).rustc == wanted, changes
        assert _told(root) == expected
        assert _build(root, tmp_path, shim, **extra).rustc == []
        if where == "worktree":
            git(main, "worktree", "remove", "--force", str(root))
        else:
            _change(root, {name: before.get(name) for name in changes})
            assert _build(root, tmp_path, shim).rustc == wanted
            assert _told(root) == FIRST


def test_what_is_not_declared_is_not_seen(btrfs: Path, tmp_path: Path) -> None:
    """The control: it is the declaration that does it."""
    main = _project(btrfs / "main", files(""))
    _build(main, tmp_path, "shim")
    (observed,) = (main / "target/debug/.fingerprint").glob("app-*/cow-observed.json")
    assert json.loads(observed.read_text())["hidden"]["complete"] is True
    _change(main, {"app/schema": "s2"})
    assert _build(main, tmp_path, "shim").rustc == []
    # Declared from now on: what it was then nobody knows.
    manifest = main / "app/Cargo.toml"
    manifest.write_text(f"{manifest.read_text()}[package.metadata.cow]\n{DECLARED}\n")
    assert _build(main, tmp_path, "shim").rustc == ["app"]
    assert _told(main).startswith("s2 ")
    assert _build(main, tmp_path, "shim").rustc == []


def test_what_does_not_match_may_differ(btrfs: Path, tmp_path: Path) -> None:
    main = _project(btrfs / "main", files())
    _build(main, tmp_path, "shim")
    there = btrfs / "there"
    git(main, "worktree", "add", "-q", str(there))
    for root in (main, there):
        _change(root, {"app/data/notes": "nor this", "app/data/new": "", "app/notes": ""})
        assert _build(root, tmp_path, "shim", OTHER="x").rustc == []


def test_it_is_edited_while_it_is_compiled(btrfs: Path, tmp_path: Path) -> None:
    """What the compile read is not known then: it counts as different."""
    main = _project(btrfs / "main", files())
    compiler = tmp_path / "edit" / "rustc"
    compiler.parent.mkdir()
    compiler.write_text(
        '#!/bin/sh\nrustc "$@"; status=$?\n'
        f'case " $* " in *" --crate-name app "*) sleep 0.05; printf s2 > {main}/app/schema;; esac\n'
        "exit $status\n"
    )
    compiler.chmod(0o755)
    for shim in ("shim", "no shim"):
        settle()
        _change(main, {"app/schema": "s1", "app/src/main.rs": f"{_MAIN}// {shim}\n"})
        _build(main, tmp_path, shim, RUSTC=str(compiler))
        assert _told(main) == FIRST
        assert _build(main, tmp_path, shim).rustc == ["app"]
        assert _told(main).startswith("s2 ")


_MAIN = files()["app/src/main.rs"]


def test_a_script_runs_again(btrfs: Path, tmp_path: Path) -> None:
    """It belongs to every unit of the package: a script may read what it does not declare."""
    script = """fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=SAID={}", std::fs::read_to_string("schema").unwrap());
    println!("cargo:rustc-env=REGION=mine");
}
"""
    main = _project(
        btrfs / "main",
        files()
        | {"app/build.rs": script, "app/src/main.rs": 'fn main() { print!(env!("SAID")); }\n'},
    )
    _build(main, tmp_path, "shim")
    assert _build(main, tmp_path, "shim").rustc == []
    _change(main, {"app/schema": "s2"})
    built = _build(main, tmp_path, "shim")
    assert (_told(main), built.scripts) == ("s2", 1)
    assert _build(main, tmp_path, "shim").scripts == 0


def test_plain_cargo_between(btrfs: Path, tmp_path: Path) -> None:
    """What plain Cargo built without the shim is not recorded; an edit after it is seen."""
    main = _project(btrfs / "main", files('[package.metadata.cow]\ninputs = ["schema"]\n'))
    assert cargo(main, tmp_path, "build").status == 0
    _change(main, {"app/schema": "s2"})
    assert cargo(main, tmp_path, "build").rustc == []  # it is blind
    assert _build(main, tmp_path, "no shim").rustc == ["app"]
    assert _told(main).startswith("s2 ")


@pytest.mark.parametrize(
    ("table", "warning"),
    [
        ("inputs = 'schema'", "inputs is no list"),
        ("inputs = [1]", "1 is no string"),
        ("inputs = ['env:']", "'env:' names no variable"),
        ("inputs = ['']", "'' is no path"),
        ("inputs = ['{a,b}']", "'{a,b}' is no file; only *, ? and ** are patterns"),
        ("input = ['schema']", "input means nothing to cargo-cow"),
    ],
)
def test_a_bad_declaration_is_a_warning(
    btrfs: Path, tmp_path: Path, table: str, warning: str
) -> None:
    plain = {
        "Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n'
        f"[package.metadata.cow]\n{table}\n",
        "src/main.rs": "fn main() {}\n",
    }
    root = repository(btrfs / "main", plain)
    built = _build(root, tmp_path, "shim")
    assert f"warning: {root}/Cargo.toml: package.metadata.cow" in built.output
    assert warning in built.output
    assert _build(root, tmp_path, "shim").rustc == []


def test_patterns(tmp_path: Path) -> None:
    names = ["a.sql", "b.txt", "sub/c.sql", "sub/deep/d.sql", ".git/e.sql", "[x]", "target/f.sql"]
    write(tmp_path, dict.fromkeys(names, "") | {"target/CACHEDIR.TAG": ""})
    (tmp_path / "sub/loop").symlink_to("..")
    (tmp_path / "nowhere").symlink_to("not-there")

    def found(pattern: str) -> list[str]:
        paths = declared.files_of(f"{tmp_path}/{pattern}", f"{tmp_path}/target")
        return [path[len(str(tmp_path)) + 1 :] for path in paths]

    assert found("*.sql") == ["a.sql"]
    assert found("**/*.sql") == ["a.sql", "sub/c.sql", "sub/deep/d.sql"]
    assert found("s?b/*.sql") == ["sub/c.sql"]
    assert found("sub/**") == found("sub")
    assert found("sub/deep") == ["sub/deep/", "sub/deep/d.sql"]
    assert found("./sub/../a.sql") == ["sub/../a.sql"]
    assert found("[x]") == ["[x]"]
    assert found("nowhere") == ["nowhere"]
    assert found("none") == found("*.none") == []
    assert "target/f.sql" not in found("")


def test_a_moved_directory_is_a_change(tmp_path: Path) -> None:
    write(tmp_path, {"new/a": "2", "data/a": "1"})
    settle()
    declarations = declared.Declarations(str(tmp_path), f"{tmp_path}/target", Contents())
    (tmp_path / "now").touch()
    before = (tmp_path / "now").stat().st_mtime_ns
    one = declared.Declared("package:data/a", str(tmp_path), "data/a", None)
    assert declarations.changed(one) < before
    (tmp_path / "data").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "data")
    os.utime(tmp_path / "data/a", ns=(1, 1))
    assert declarations.changed(one) >= before


@pytest.mark.parametrize("shim", ["shim", "no shim"])
def test_a_variable_that_cargos_configuration_sets(btrfs: Path, tmp_path: Path, shim: str) -> None:
    set_ = {".cargo/config.toml": '[env]\nREGION = "set"\n'}
    main = _project(btrfs / "main", files() | set_)
    _build(main, tmp_path, shim)
    assert _told(main).endswith(" set")
    assert _build(main, tmp_path, shim).rustc == []
    # The user's own counts more.
    assert _build(main, tmp_path, shim, REGION="mine").rustc == ["app"]
    assert _told(main).endswith(" mine")
    _change(main, {".cargo/config.toml": '[env]\nREGION = { value = "set", force = true }\n'})
    assert _build(main, tmp_path, shim, REGION="mine").rustc == ["app"]
    assert _told(main).endswith(" set")
    assert _build(main, tmp_path, shim, REGION="mine").rustc == []
    _change(main, {".cargo/config.toml": '[env]\nREGION.value = "dir"\nREGION.relative = true\n'})
    assert _build(main, tmp_path, shim).rustc == ["app"]
    assert _told(main).endswith(f" {main}/dir")
    assert _build(main, tmp_path, shim).rustc == []
