"""Worktrees with a prepared target: what git refuses stays refused, and nothing else fails."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support.projects import cargo, git, repository, write

from cargo_cow import filesystems, native, prepare, worktrees
from cargo_cow.errors import GitFailed, Locked, NativeMissing
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.worktrees import AddOptions

FILES = {
    "Cargo.toml": '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n',
    "src/main.rs": 'fn main() { println!("one"); }\n',
}


@pytest.fixture(autouse=True)
def _program(missing: Callable[[str], NoReturn]) -> None:
    """PROBE: the native program that clones."""
    try:
        native.version()
    except NativeMissing as error:
        missing(str(error))


@pytest.fixture
def main(tmp_path: Path) -> Path:
    """A main checkout that was never built."""
    return repository(tmp_path / "main", FILES)


class Said(list[str]):
    """What was said to the user."""

    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def said() -> Said:
    return Said()


def add(
    path: Path | str, main: Path, commit: str | None = None, **options: object
) -> worktrees.Added:
    return worktrees.add(
        str(path),
        commit,
        AddOptions(quiet=True)._replace(**options),  # type: ignore[arg-type]
        cwd=main,
        say=lambda _: None,
    )


# --- add ---------------------------------------------------------------------------------------


def test_first_build_of_a_worktree_compiles_nothing(any_filesystem: Path, tmp_path: Path) -> None:
    main = repository(any_filesystem / "main", FILES)
    assert cargo(main, tmp_path, "build").rustc == ["tiny"]
    added = add(any_filesystem / "topic", main, new_branch="topic")
    assert added.warning is None
    assert (added.branch, added.head) == ("topic", git(main, "rev-parse", "HEAD"))
    assert added.target == any_filesystem / "topic" / "target"
    assert added.prepared is not None
    assert added.prepared.donor == str(main)
    assert added.prepared.dropped == 0
    built = cargo(added.root, tmp_path, "build")
    assert (built.status, built.rustc) == (0, []), built.output
    edited = added.root / "src/main.rs"
    edited.write_text(edited.read_text().replace("one", "two"))
    assert cargo(added.root, tmp_path, "build").rustc == ["tiny"]
    for root, text in ((main, "one\n"), (added.root, "two\n")):
        ran = subprocess.run([root / "target/debug/tiny"], capture_output=True, check=True)
        assert ran.stdout.decode() == text


def test_the_invoking_workspace_is_the_one_prepared(btrfs: Path, tmp_path: Path) -> None:
    files = {f"rust/core/{name}": text for name, text in FILES.items()}
    main = repository(btrfs / "main", {**files, "README": "", ".gitignore": "target\n"})
    assert cargo(main / "rust/core", tmp_path, "build").rustc == ["tiny"]
    added = add("../../../topic", main / "rust/core", new_branch="topic")
    assert added.root == btrfs / "topic"
    assert added.workspace == added.root / "rust/core"
    assert added.prepared is not None
    assert cargo(added.root / "rust/core", tmp_path, "build").rustc == []


def test_a_donor_by_name(btrfs: Path, tmp_path: Path) -> None:
    main = repository(btrfs / "main", FILES)
    cargo(main, tmp_path, "build")
    middle = add(btrfs / "middle", main, detach=True)
    cargo(middle.root, tmp_path, "build")
    added = worktrees.add(
        "../named", None, AddOptions(detach=True), cwd=main, say=lambda _: None, donor=middle.root
    )
    assert added.prepared is not None
    assert added.prepared.donor == str(middle.root)
    assert cargo(added.root, tmp_path, "build").rustc == []


def test_options_have_gits_meaning(main: Path, tmp_path: Path) -> None:
    git(main, "branch", "other")
    first = git(main, "rev-parse", "HEAD")
    write(main, {"src/more.rs": ""})
    git(main, "add", ".")
    git(main, "commit", "-qm", "second")
    second = git(main, "rev-parse", "HEAD")

    assert add(tmp_path / "other", main).branch == "other"
    assert add(tmp_path / "reset", main, "HEAD~1", reset_branch="reset").head == first
    detached = add(tmp_path / "detached", main, detach=True)
    assert (detached.branch, detached.head) == (None, second)
    add(tmp_path / "locked", main, lock=True, reason="on a stick")
    reason = main / ".git/worktrees/locked/locked"
    assert reason.read_text().strip() == "on a stick"
    twice = add(tmp_path / "twice", main, "other", force=1)
    assert twice.branch == "other"
    empty = add(tmp_path / "empty", main, checkout=False)
    assert [entry.name for entry in empty.root.iterdir()] == [".git"]
    assert empty.warning is not None
    assert "cargo cow prepare" in empty.warning


def test_what_git_refuses_is_refused(
    main: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(GitFailed, match="status 128"):
        add(tmp_path / "there", main)
    with pytest.raises(GitFailed):
        add(tmp_path / "new", main, "main")  # checked out in the main checkout
    assert "main" in capfd.readouterr().err
    with pytest.raises(GitFailed):
        add(tmp_path / "new", main, "no-such-branch")
    with pytest.raises(GitFailed):
        add(tmp_path / "new", main, new_branch="main")
    with pytest.raises(GitFailed):
        add("-x", main, "--output=y")
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]
    assert len(worktrees.listing(main)) == 1


def test_outside_git_and_without_git(
    tmp_path: Path, main: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "plain", FILES)
    calls: list[Callable[[Path], object]] = [
        lambda cwd: add("new", cwd),
        worktrees.listing,
        lambda cwd: worktrees.plan_removal("new", cwd=cwd),
    ]
    for call in calls:
        with pytest.raises(GitFailed, match="not in a git checkout") as caught:
            call(tmp_path / "plain")
        assert caught.value.hint
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for call in calls:
        with pytest.raises(GitFailed, match="not installed"):
            call(main)


def test_bare_repository(main: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(main), "bare.git")
    bare = tmp_path / "bare.git"
    added = add(tmp_path / "one", bare)
    assert added.workspace == tmp_path / "one"
    assert added.warning is None
    assert added.prepared is None  # nothing is built anywhere
    listed = worktrees.listing(bare)
    assert [(entry.checkout.bare, entry.target) for entry in listed] == [
        (True, None),
        (False, tmp_path / "one/target"),
    ]
    with pytest.raises(GitFailed, match="main checkout"):
        worktrees.plan_removal(str(bare), cwd=bare)


def test_the_repository_is_gone(main: Path, tmp_path: Path) -> None:
    added = add(tmp_path / "topic", main, new_branch="topic")
    main.rename(tmp_path / "moved")
    with pytest.raises(GitFailed, match="not in a git checkout"):
        add(tmp_path / "more", added.root)
    with pytest.raises(GitFailed, match="not in a git checkout"):
        worktrees.listing(added.root)
    assert added.root.is_dir()


def test_a_path_that_is_not_utf8(btrfs: Path, tmp_path: Path) -> None:
    main = repository(btrfs / "main", FILES)
    assert cargo(main, tmp_path, "build").rustc == ["tiny"]
    odd = btrfs / os.fsdecode(b"na\xefve")
    added = add(odd, main, new_branch="topic")
    # Cargo itself refuses such a path (its metadata is JSON), so the worktree is all there is.
    assert (odd / "src/main.rs").is_file()
    assert added.root == odd
    assert added.warning is not None
    listed = worktrees.listing(main)
    assert [entry.checkout.root for entry in listed] == [main, odd]
    worktrees.remove(worktrees.plan_removal(str(odd), cwd=main), say=lambda _: None)
    assert not odd.exists()


def test_no_cargo_project(tmp_path: Path) -> None:
    main = repository(tmp_path / "main", {"README": "text"})
    added = add(tmp_path / "topic", main, new_branch="topic")
    assert added.workspace is None
    assert added.warning is not None
    assert "nothing to prepare" in added.warning
    assert (added.root / "README").is_file()


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), NativeMissing("no program"), OSError(28, "full")]
)
def test_a_failing_prepare_never_fails_the_worktree(
    error: Exception, main: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(prepare, "bring", fail)
    added = add(tmp_path / "topic", main, new_branch="topic")
    assert added.warning is not None
    assert str(error) in added.warning
    assert cargo(added.root, tmp_path, "build").rustc == ["tiny"]


def test_a_manifest_that_does_not_parse(main: Path, tmp_path: Path) -> None:
    (main / "Cargo.toml").write_text("[package\n")
    git(main, "commit", "-qam", "broken")
    added = add(tmp_path / "topic", main, new_branch="topic")
    assert added.warning is not None
    assert "cargo metadata" in added.warning
    (entry, _) = worktrees.listing(main)
    assert entry.target is None
    assert entry.trouble


# --- list --------------------------------------------------------------------------------------


def test_listing(btrfs: Path, tmp_path: Path) -> None:
    main = repository(btrfs / "main", FILES)
    cargo(main, tmp_path, "build")
    add(btrfs / "topic", main, new_branch="topic", lock=True)
    add(btrfs / "gone", main, detach=True)
    git(btrfs, "-C", "main", "worktree", "list")
    (btrfs / "gone").rename(btrfs / "elsewhere")
    first, gone, topic = worktrees.listing(btrfs / "topic" / "src")
    assert (first.checkout.root, first.checkout.branch) == (main, "main")
    assert first.prepared is None
    assert first.usage is not None
    assert first.usage.logical_bytes > 100_000
    assert gone.checkout.prunable
    assert (gone.target, gone.usage) == (None, None)
    assert topic.locked
    assert topic.prepared is not None
    assert topic.prepared.donor == str(main)
    assert topic.usage is not None
    assert topic.usage.exact
    assert topic.usage.shared_bytes > topic.usage.exclusive_bytes
    assert all(entry.usage is None for entry in worktrees.listing(main, sizes=False))


def test_one_target_for_all_is_measured_once(
    main: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARGO_TARGET_DIR", str(tmp_path / "shared"))
    add(tmp_path / "topic", main, new_branch="topic")
    (tmp_path / "shared").mkdir(exist_ok=True)
    measured: list[Path] = []

    def usage(path: Path) -> filesystems.Usage:
        measured.append(path)
        return filesystems.Usage(1, 1, 0, True)

    monkeypatch.setattr(filesystems, "usage", usage)
    assert len(worktrees.listing(main)) == 2
    assert measured == [tmp_path / "shared"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"donor": 3, "time": "now", "proven": null}'])
def test_damaged_word_of_the_last_prepare(text: str, tmp_path: Path) -> None:
    (tmp_path / ".cargo-cow").mkdir()
    (tmp_path / ".cargo-cow" / "prepared.json").write_text(text)
    found = worktrees.last_prepare(tmp_path)
    assert found is None or found == worktrees.Prepared(None, None, None, None, None)


# --- remove ------------------------------------------------------------------------------------


def fake_target(checkout: Path) -> Path:
    """What a build leaves, as far as removal looks at it."""
    target = checkout / "target"
    filesystems.create_target(target)
    (target / "debug" / ".fingerprint").mkdir(parents=True)
    (target / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    (target / "debug" / "big").write_bytes(os.urandom(100_000))
    return target


@pytest.fixture
def topic(main: Path, tmp_path: Path) -> Path:
    """A worktree with something in its target."""
    root = add(tmp_path / "topic", main, new_branch="topic").root
    fake_target(root)
    return root


def removed(path: Path | str, cwd: Path, said: Said, force: int = 0) -> worktrees.Removal:
    plan = worktrees.plan_removal(str(path), cwd=cwd, force=force)
    worktrees.remove(plan, say=said)
    return plan


def test_remove_takes_the_target_along(any_filesystem: Path, said: Said) -> None:
    main = repository(any_filesystem / "main", FILES)
    root = add(any_filesystem / "topic", main, new_branch="topic").root
    target = fake_target(root)
    if any_filesystem.name.startswith("btrfs"):
        assert subvolumes.is_subvolume(target)
    plan = removed(root, main, said)
    assert plan.targets == (target,)
    assert not root.exists()
    assert [entry.checkout.root for entry in worktrees.listing(main)] == [main]
    assert said == []


def test_planning_touches_nothing(topic: Path, main: Path) -> None:
    plan = worktrees.plan_removal("topic", cwd=main)
    assert plan.targets == (topic / "target",)
    assert (topic / "target/debug/big").is_file()


def test_remove_from_inside(topic: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(topic)
    removed(".", topic, said)
    assert not topic.exists()


@pytest.mark.parametrize("change", ["modified", "untracked", "staged", "deleted"])
def test_a_dirty_worktree_and_its_target_stay(
    change: str, topic: Path, main: Path, said: Said
) -> None:
    if change == "modified":
        (topic / "src/main.rs").write_text("fn main() {}\n")
    elif change == "untracked":
        (topic / "notes.txt").write_text("mine\n")
    elif change == "staged":
        (topic / "src/new.rs").write_text("")
        git(topic, "add", ".")
    else:
        (topic / "src/main.rs").unlink()
    with pytest.raises(GitFailed, match="modified or untracked") as caught:
        removed(topic, main, said)
    assert "--force" in caught.value.hint
    assert (topic / "target/debug/big").is_file()
    removed(topic, main, said, force=1)
    assert not topic.exists()


def test_a_target_that_nobody_ignores_is_no_reason_to_refuse(tmp_path: Path, said: Said) -> None:
    main = repository(tmp_path / "main", {**FILES, ".gitignore": "", "Cargo.lock": LOCK})
    root = add(tmp_path / "topic", main, new_branch="topic").root
    fake_target(root)
    assert "?? target/" in git(root, "status", "--porcelain")
    (root / "target-notes").write_text("")
    with pytest.raises(GitFailed, match="target-notes"):
        removed(root, main, said)
    (root / "target-notes").unlink()
    removed(root, main, said)
    assert not root.exists()


LOCK = 'version = 4\n\n[[package]]\nname = "tiny"\nversion = "0.1.0"\n'


def test_locked_needs_force_twice(topic: Path, main: Path, said: Said) -> None:
    git(main, "worktree", "lock", "--reason", "travelling", str(topic))
    for force in (0, 1):
        with pytest.raises(GitFailed, match="locked: travelling"):
            removed(topic, main, said, force=force)
    assert (topic / "target/debug/big").is_file()
    removed(topic, main, said, force=2)
    assert not topic.exists()


def test_submodules_need_force(topic: Path, main: Path, tmp_path: Path, said: Said) -> None:
    inner = repository(tmp_path / "inner", FILES)
    git(topic, "-c", "protocol.file.allow=always", "submodule", "-q", "add", str(inner), "inner")
    git(topic, "commit", "-qm", "submodule")
    with pytest.raises(GitFailed, match="submodules"):
        removed(topic, main, said)
    assert (topic / "target/debug/big").is_file()
    removed(topic, main, said, force=1)
    assert not topic.exists()


def test_a_running_build_is_not_disturbed(topic: Path, main: Path, said: Said) -> None:
    lock = topic / "target/debug/.cargo-lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Locked):
            removed(topic, main, said)
        assert (topic / "target/debug/big").is_file()
    removed(topic, main, said)
    assert not topic.exists()


def test_what_is_not_a_worktree(topic: Path, main: Path, tmp_path: Path, said: Said) -> None:
    with pytest.raises(GitFailed, match="main checkout"):
        removed(main, topic, said)
    for path in (tmp_path, topic / "src", "opic", ""):
        with pytest.raises(GitFailed, match=r"not a worktree|main checkout"):
            removed(path, main, said)
    add(tmp_path / "deep" / "topic", main, detach=True)
    with pytest.raises(GitFailed, match="may be any of"):
        removed("topic", main, said)
    removed("deep/topic", main, said)
    assert not (tmp_path / "deep/topic").exists()
    assert topic.is_dir()


def test_a_worktree_that_is_gone_already(topic: Path, main: Path, said: Said) -> None:
    topic.rename(topic.with_name("elsewhere"))
    removed(topic, main, said)
    assert len(worktrees.listing(main)) == 1
    assert (topic.with_name("elsewhere") / "target/debug/big").is_file()


def test_a_directory_that_lost_its_git_file(topic: Path, main: Path, said: Said) -> None:
    (topic / ".git").unlink()
    # git calls it prunable: there is no checkout, and what lies there is not git's.
    with pytest.raises(GitFailed):
        removed(topic, main, said)
    assert (topic / "target/debug/big").is_file()


def test_a_target_outside_is_kept(
    topic: Path, main: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    (shared / "debug").mkdir(parents=True)
    monkeypatch.setenv("CARGO_TARGET_DIR", str(shared))
    plan = removed(topic, main, said)
    assert (plan.targets, plan.kept) == ((), (shared,))
    assert not topic.exists()
    assert shared.is_dir()


def test_a_symlinked_target_is_kept(topic: Path, main: Path, tmp_path: Path, said: Said) -> None:
    (topic / "target").rename(tmp_path / "real")
    (topic / "target").symlink_to(tmp_path / "real")
    # `/target` ignores it; a pattern with a slash at its end would not.
    plan = removed(topic, main, said)
    assert plan.kept == (topic / "target",)
    assert (tmp_path / "real/debug/big").is_file()
    assert not topic.exists()


def test_a_target_that_resists_is_left_to_git(
    topic: Path, main: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> NoReturn:
        raise OSError(16, "busy", str(path))

    monkeypatch.setattr(filesystems, "remove_target", fail)
    removed(topic, main, said)
    assert not topic.exists()
    assert "left to git" in said[0]


def test_a_broken_manifest_does_not_hide_the_target(topic: Path, main: Path, said: Said) -> None:
    (topic / "Cargo.toml").write_text("[package\n")
    git(topic, "commit", "-qam", "broken")
    plan = removed(topic, main, said)
    assert plan.targets == (topic / "target",)
    assert not topic.exists()
