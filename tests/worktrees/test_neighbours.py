"""Programs that read what Cargo says, or write what rustc suggests, in a worktree that was cloned.

With the shim and an identity: whatever they are told is of this worktree, and the main checkout
stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests.support.projects import git, repository, settle, write

from cargo_cow import native
from cargo_cow.cli.main import main as cargo_cow

FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["lib", "app"]\nresolver = "2"\n',
    "lib/Cargo.toml": '[package]\nname = "lib"\nversion = "0.1.0"\nedition = "2021"\n',
    "lib/src/lib.rs": "pub fn double(value: u32) -> u32 {\n    let mut unused = 1;\n"
    "    return value * 2;\n}\n"
    "#[test]\nfn doubles() {\n    assert_eq!(double(2), 4);\n"
    '    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/here");\n'
    "    assert!(std::path::Path::new(here).exists());\n}\n",
    "app/Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n'
    '[dependencies]\nlib = { path = "../lib" }\n',
    "app/src/main.rs": 'fn main() { println!("{}", lib::double(4)); }\n',
}


@pytest.fixture
def there(btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A worktree of a checkout where everything was built, with the shim in the project's own
    configuration.  No file of the main checkout changes."""
    root = repository(btrfs / "main", FILES)
    program = json.dumps(str(native.program()))
    write(root, {".cargo/config.toml": f"[build]\nrustc-wrapper = {program}\n"})
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "shim")
    settle()
    for verb in (["build"], ["test", "--no-run"], ["check"], ["clippy"]):
        subprocess.run(["cargo", verb[0], "-q", "--workspace", *verb[1:]], cwd=root, check=True,
                       capture_output=True)  # fmt: skip
    monkeypatch.chdir(root)
    monkeypatch.delenv("RUST_BACKTRACE", raising=False)
    monkeypatch.setenv("CARGO_COW_LOG", str(tmp_path / "log"))
    assert cargo_cow(["worktree", "add", str(btrfs / "there")]) == 0
    write(btrfs / "there", {"lib/here": ""})
    monkeypatch.chdir(btrfs / "there")
    before = _files(root)
    yield btrfs / "there"
    assert _files(root) == before


def _files(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in root.glob("**/*")
        if path.is_file() and "target" not in path.parts and ".git" not in path.parts
    }


def _cargo(*words: str) -> str:
    done = subprocess.run(["cargo", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _messages(there: Path, *words: str) -> list[dict[str, Any]]:
    said = [json.loads(line) for line in _cargo(*words, "--message-format=json").splitlines()]
    main = str(there.parent / "main")
    assert not [message for message in said if f"{main}/" in json.dumps(message)]
    assert any(str(there) in json.dumps(message) for message in said)
    return [message for message in said if message["reason"] == "compiler-message"]


@pytest.mark.parametrize("edited", [False, True])
def test_what_an_editor_reads(there: Path, tmp_path: Path, edited: bool) -> None:
    """rust-analyzer's flycheck: replayed from the clone, and of a compile at the identity."""
    if edited:
        settle()
        text = (there / "lib/src/lib.rs").read_text()
        write(there, {"lib/src/lib.rs": f"// edited\n{text}"})
    for message in _messages(there, "check", "--workspace", "--all-targets"):
        assert message["target"]["src_path"].startswith(f"{there}/")
        for span in message["message"]["spans"]:
            assert (there / span["file_name"]).is_file()
            assert span["line_start"] == (3 if edited else 2)
    if edited:
        assert "identity: ran in" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("verb", ["fix", "clippy"])
def test_what_writes_suggestions_down(there: Path, verb: str) -> None:
    words = ["clippy", "--fix"] if verb == "clippy" else ["fix"]
    settle()
    _cargo(*words, "--lib", "-p", "lib", "--allow-dirty")
    text = (there / "lib/src/lib.rs").read_text()
    assert "mut unused" not in text
    assert ("return" in text) == (verb == "fix")
    assert subprocess.run(["cargo", "run", "-q"], check=True, capture_output=True).stdout == b"8\n"


def test_tests_of_the_worktree_run(there: Path, missing: Callable[[str], NoReturn]) -> None:
    """They look for files of their package by a path that was baked."""
    _cargo("test", "-q")
    if shutil.which("cargo-nextest") is None:
        missing("cargo-nextest is not installed: a neighbour, not a capability of ours")
    _cargo("nextest", "run")
    (there / "lib/here").unlink()
    done = subprocess.run(["cargo", "nextest", "run"], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    # But for a backtrace: debug information names the identity.
    assert str(there.parent / "main") not in done.stderr


@pytest.mark.slow
def test_snapshots_are_written_here(there: Path) -> None:
    """insta finds the workspace by the directory that its macro bakes."""
    manifest = (there / "lib/Cargo.toml").read_text() + '[dev-dependencies]\ninsta = "1"\n'
    source = "#[test]\nfn snapshot() { insta::assert_snapshot!(crate::double(3)); }\n"
    write(
        there,
        {
            "lib/Cargo.toml": manifest,
            "lib/src/lib.rs": (there / "lib/src/lib.rs").read_text() + source,
        },
    )
    environment = {**os.environ, "INSTA_UPDATE": "new", "INSTA_FORCE_PASS": "1"}
    done = subprocess.run(
        ["cargo", "test", "-p", "lib"],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in there.glob("lib/src/**/*.snap.new")] == ["lib__snapshot.snap.new"]
