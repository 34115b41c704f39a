"""The gateway to git: its own reading of git's files equals what git answers.

PROBE: every case asks the real git the same question (``by_git``) instead of trusting
an expectation written down here.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cargo_cow import git
from cargo_cow.errors import GitFailed
from tests.support.capabilities import missing


@pytest.fixture(autouse=True)
def quiet_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A git without the user's configuration, and none of git's variables around."""
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (home / ".gitconfig").write_text(
        "[user]\n\tname = A Developer\n\temail = developer@example.com\n"
        "[init]\n\tdefaultBranch = trunk\n"
        '[protocol "file"]\n\tallow = always\n'
        "[advice]\n\tdetachedHead = false\n"
    )


def sh(cwd: Path, *args: str | Path) -> bytes:
    done = subprocess.run(["git", *args], cwd=cwd, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def ask(cwd: Path, *args: str) -> str | None:
    done = subprocess.run(["git", *args], cwd=cwd, capture_output=True, check=False)
    return os.fsdecode(done.stdout.removesuffix(b"\n")) if done.returncode == 0 else None


def by_git(cwd: Path) -> tuple[object, ...] | None:
    """git's own answer in the shape of ``facts``."""
    git_dir = ask(cwd, "rev-parse", "--absolute-git-dir")
    if git_dir is None:
        return None
    bare = ask(cwd, "rev-parse", "--is-bare-repository") == "true"
    root = ask(cwd, "rev-parse", "--show-toplevel")
    if root is None and not bare:
        return None
    if root is None:
        root = git_dir.removesuffix("/.git")  # as `git worktree list` does
    common = ask(cwd, "rev-parse", "--git-common-dir")
    assert common is not None
    common = os.path.realpath(cwd / common)
    reference = ask(cwd, "symbolic-ref", "--quiet", "HEAD")
    return (
        root,
        git_dir,
        common,
        ask(cwd, "rev-parse", "--verify", "--quiet", "HEAD"),
        None if reference is None else reference.removeprefix("refs/heads/"),
        os.path.realpath(git_dir) == common,
        bare,
    )


def facts(checkout: git.Checkout | None) -> tuple[object, ...] | None:
    if checkout is None:
        return None
    return (
        str(checkout.root),
        str(checkout.git_dir),
        str(checkout.common_dir),
        checkout.head,
        checkout.branch,
        checkout.is_main,
        checkout.bare,
    )


def repository(where: Path, *options: str) -> Path:
    where.mkdir(parents=True)
    sh(where, "init", "--quiet", *options)
    (where / "Cargo.toml").write_text("[package]\nname = 'p'\n")
    (where / "src").mkdir()
    (where / "src" / "lib.rs").write_text("pub fn one() {}\n")
    sh(where, "add", ".")
    sh(where, "commit", "--quiet", "-m", "one")
    return where


def case_main(base: Path) -> Path:
    return repository(base / "main")


def case_below_main(base: Path) -> Path:
    return repository(base / "main") / "src"


def case_packed_references(base: Path) -> Path:
    main = repository(base / "main")
    sh(main, "branch", "trunk-2")
    sh(main, "tag", "-a", "-m", "tag", "v1")
    sh(main, "pack-refs", "--all")
    return main


def case_branch_with_slashes(base: Path) -> Path:
    main = repository(base / "main")
    sh(main, "checkout", "--quiet", "-b", "topic/deep/er")
    return main


def case_detached(base: Path) -> Path:
    main = repository(base / "main")
    sh(main, "checkout", "--quiet", "--detach")
    return main


def case_unborn(base: Path) -> Path:
    main = base / "main"
    main.mkdir()
    sh(main, "init", "--quiet")
    return main


def case_orphan(base: Path) -> Path:
    main = repository(base / "main")
    sh(main, "checkout", "--quiet", "--orphan", "other")
    return main


def case_sha256(base: Path) -> Path:
    return repository(base / "main", "--object-format=sha256")


def case_reftable(base: Path) -> Path:
    if ask(base, "init", "--quiet", "--ref-format=reftable", "trial") is None:
        missing("this git knows no reftable")
    return repository(base / "main", "--ref-format=reftable")


def case_linked(base: Path) -> Path:
    main = repository(base / "main")
    sh(main, "worktree", "add", "--quiet", base / "linked")
    return base / "linked"


def case_linked_inside(base: Path) -> Path:
    main = repository(base / "main")
    sh(main, "worktree", "add", "--quiet", "--detach", main / ".worktrees" / "one")
    return main / ".worktrees" / "one" / "src"


def case_linked_relative(base: Path) -> Path:
    linked = case_linked(base)
    (linked / ".git").write_text("gitdir: ../main/.git/worktrees/linked\n")
    return linked


def case_linked_bisecting(base: Path) -> Path:
    linked = case_linked(base)
    sh(linked, "symbolic-ref", "HEAD", "refs/bisect/odd")
    return linked


def case_linked_sparse(base: Path) -> Path:
    linked = case_linked(base)
    sh(linked, "sparse-checkout", "set", "src")  # turns extensions.worktreeConfig on
    return linked


def case_linked_of_bare(base: Path) -> Path:
    main = repository(base / "main")
    sh(base, "clone", "--quiet", "--bare", main, base / "bare.git")
    sh(base / "bare.git", "worktree", "add", "--quiet", base / "linked")
    return base / "linked"


def case_bare(base: Path) -> Path:
    main = repository(base / "main")
    sh(base, "clone", "--quiet", "--bare", main, base / "bare.git")
    return base / "bare.git"


def case_below_bare(base: Path) -> Path:
    return case_bare(base) / "refs"


def case_bare_dot_git(base: Path) -> Path:
    main = repository(base / "main")
    sh(main, "config", "core.bare", "true")
    return main


def case_file_to_bare(base: Path) -> Path:
    """The layout with ``.bare`` and a ``.git`` file beside the worktrees."""
    main = repository(base / "main")
    project = base / "project"
    project.mkdir()
    sh(base, "clone", "--quiet", "--bare", main, project / ".bare")
    (project / ".git").write_text("gitdir: ./.bare\n")
    return project


def case_separate_git_dir(base: Path) -> Path:
    return repository(base / "main", f"--separate-git-dir={base / 'elsewhere'}")


def case_work_tree_elsewhere(base: Path) -> Path:
    main = repository(base / "main")
    other = base / "other"
    other.mkdir()
    sh(main, "config", "core.worktree", str(other))
    return main


def case_submodule(base: Path) -> Path:
    inner = repository(base / "inner")
    outer = repository(base / "outer")
    sh(outer, "submodule", "--quiet", "add", str(inner), "vendored/inner")
    return outer / "vendored" / "inner"


def case_submodule_of_linked(base: Path) -> Path:
    case_submodule(base)
    outer = base / "outer"
    sh(outer, "commit", "--quiet", "-m", "submodule")
    sh(outer, "worktree", "add", "--quiet", base / "linked")
    sh(base / "linked", "submodule", "--quiet", "update", "--init")
    return base / "linked" / "vendored" / "inner"


def case_inside_git_dir(base: Path) -> Path:
    return repository(base / "main") / ".git" / "objects"


def case_git_dir(base: Path) -> Path:
    return repository(base / "main") / ".git"


def case_outside(base: Path) -> Path:
    (base / "plain").mkdir()
    return base / "plain"


def case_main_is_gone(base: Path) -> Path:
    linked = case_linked(base)
    (base / "main").rename(base / "moved")
    return linked


def case_hollow_dot_git(base: Path) -> Path:
    """An empty ``.git`` directory is passed over: the outer repository counts."""
    main = repository(base / "main")
    (main / "src" / ".git").mkdir()
    return main / "src"


def case_through_symlink(base: Path) -> Path:
    repository(base / "main")
    (base / "apparent").symlink_to(base / "main", target_is_directory=True)
    return base / "apparent" / "src"


def case_below_ceiling(base: Path) -> Path:
    main = repository(base / "main")
    os.environ["GIT_CEILING_DIRECTORIES"] = f"relative:{main}"
    return main / "src"


def case_odd_name(base: Path) -> Path:
    return repository(base / os.fsdecode(b"na\xefve dir\nsecond line"))


CASES = {name: value for name, value in list(globals().items()) if name.startswith("case_")}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_checkout_of_is_what_git_says(
    case: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "")  # restored whatever the case sets
    assert callable(case)
    where = case(tmp_path)
    assert facts(git.checkout_of(where)) == by_git(where)


NATIVE = ("main", "packed_references", "detached", "unborn", "linked", "linked_of_bare", "bare",
          "linked_sparse", "submodule", "outside")  # fmt: skip


@pytest.mark.parametrize("name", NATIVE)
def test_usual_checkouts_start_no_process(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = CASES[f"case_{name}"](tmp_path)
    expected = by_git(where)

    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "posix_spawnp", refuse)
    assert facts(git.checkout_of(where)) == expected


def test_odd_checkouts_do_start_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a relocated work tree needs git."""
    where = case_work_tree_elsewhere(tmp_path)

    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "posix_spawnp", refuse)
    with pytest.raises(AssertionError):
        git.checkout_of(where)


def test_a_path_that_does_not_exist_is_asked_about_its_directory(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    checkout = git.checkout_of(main / "Cargo.toml")
    assert checkout is not None
    assert checkout.root == main
    assert git.checkout_of(tmp_path / "nowhere" / "at" / "all") is None


def test_without_git_there_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = repository(tmp_path / "main")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert git.checkout_of(main) is None
    with pytest.raises(GitFailed, match="not installed") as caught:
        git.checkouts(main)
    assert "install git" in caught.value.hint


def test_hook_environment_does_not_mislead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = repository(tmp_path / "one")
    two = repository(tmp_path / "two")
    sh(two, "checkout", "--quiet", "-b", "topic")
    monkeypatch.setenv("GIT_DIR", str(one / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(one))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "no index"))
    monkeypatch.setenv("GIT_PREFIX", "src/")
    assert [entry.root for entry in git.checkouts(two)] == [two]
    assert git.package_files(two, Path()) == [Path("Cargo.toml"), Path("src/lib.rs")]


def test_checkouts_main_first(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    odd = tmp_path / os.fsdecode(b"od\xffd\nname")
    sh(main, "worktree", "add", "--quiet", "-b", "topic", odd)
    sh(main, "worktree", "add", "--quiet", "--detach", tmp_path / "detached")
    sh(main, "worktree", "add", "--quiet", tmp_path / "gone")
    (tmp_path / "gone").rename(tmp_path / "taken away")
    found = git.checkouts(odd)
    assert found == git.checkouts(main)
    assert found[0].root == main
    assert (found[0].is_main, found[0].bare, found[0].branch) == (True, False, "trunk")
    named = {entry.root: entry for entry in found}
    assert named[odd].branch == "topic"
    assert named[odd].git_dir.parent == main / ".git" / "worktrees"
    assert named[tmp_path / "detached"].branch is None
    assert named[tmp_path / "detached"].head == found[0].head
    gone = named[tmp_path / "gone"]
    assert gone.prunable
    assert gone.git_dir.is_dir()
    for entry in found:
        if not entry.prunable:
            assert git.checkout_of(entry.root) == entry


def test_checkouts_of_a_bare_repository(tmp_path: Path) -> None:
    linked = case_linked_of_bare(tmp_path)
    found = git.checkouts(linked)
    assert [(entry.root, entry.bare, entry.is_main) for entry in found] == [
        (tmp_path / "bare.git", True, True),
        (linked, False, False),
    ]


def test_main_checkout_of_a_submodule_is_its_directory(tmp_path: Path) -> None:
    inner = case_submodule(tmp_path)
    sh(inner, "worktree", "add", "--quiet", "--detach", tmp_path / "linked")
    for where in (inner, tmp_path / "linked"):
        assert [entry.root for entry in git.checkouts(where)] == [inner, tmp_path / "linked"]
        assert git.checkouts(where)[0] == git.checkout_of(inner)


def test_main_checkout_with_a_separate_git_dir(tmp_path: Path) -> None:
    main = case_separate_git_dir(tmp_path)
    assert git.checkouts(main) == [git.checkout_of(main)]


def test_checkouts_outside_git_and_with_the_repository_gone(tmp_path: Path) -> None:
    with pytest.raises(GitFailed, match="not a git repository"):
        git.checkouts(case_outside(tmp_path))
    linked = case_main_is_gone(tmp_path)
    with pytest.raises(GitFailed, match="not a git repository") as caught:
        git.checkouts(linked)
    assert caught.value.hint


def test_trees_and_their_distance(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    first = git.tree_id(main)
    assert first is not None
    sh(main, "commit", "--quiet", "--allow-empty", "-m", "nothing")
    assert git.tree_id(main) == first
    assert git.changed_paths(main, "HEAD~1") == []
    odd = os.fsdecode(b"sr\xffc\n.rs")
    (main / odd).write_text("")
    (main / "src" / "lib.rs").rename(main / "src" / "two.rs")
    sh(main, "add", "--all")
    sh(main, "commit", "--quiet", "-m", "more")
    assert sorted(git.changed_paths(main, "HEAD~1")) == sorted(
        [Path("src/lib.rs"), Path("src/two.rs"), Path(odd)]
    )
    second = git.tree_id(main)
    assert second is not None
    assert git.changed_paths(main, first, second) == git.changed_paths(main, "HEAD~1")
    assert git.tree_id(main, "HEAD~1") == first
    assert git.tree_id(main, "no-such-branch") is None
    assert git.object_exists(main, first)
    assert not git.object_exists(main, "0123456789" * 4)
    with pytest.raises(GitFailed):
        git.changed_paths(main, "0123456789" * 4)
    with pytest.raises(GitFailed, match="not a commit"):
        git.changed_paths(main, "--output=x")


def test_tree_of_an_unborn_branch(tmp_path: Path) -> None:
    assert git.tree_id(case_unborn(tmp_path)) is None


def test_package_files(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    package = main / "crates" / "web"
    names = [
        ".env",
        ".env.local",
        "assets/one.html",
        "generated/prod.env",
        "generated/deep/.env",
        "generated/other",
        "node_modules/x/.env",
        "node_modules/x/index.js",
        "new.rs",
        "gone.rs",
        "target/debug/deps/out/.env",
        "target/CACHEDIR.TAG",
        "cache/CACHEDIR.TAG",
        "cache/object",
        os.fsdecode(b"na\xefve\n.rs"),
    ]
    for name in names:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(name.encode(errors="replace").decode())
    (package / "link").symlink_to("nowhere")
    (main / ".gitignore").write_text("/crates/web/target\n.env*\ngenerated/\nnode_modules\n")
    sh(main, "add", "crates/web/gone.rs", "crates/web/assets")
    (package / "gone.rs").unlink()
    found = git.package_files(main, Path("crates/web"))
    assert found == sorted(found)
    assert {str(path.relative_to("crates/web")) for path in found} == {
        ".env",
        ".env.local",
        "assets/one.html",
        "generated/deep/.env",
        "generated/prod.env",
        "link",
        "new.rs",
        "node_modules/x/.env",
        os.fsdecode(b"na\xefve\n.rs"),
    }


def test_package_files_of_submodules_and_other_worktrees(tmp_path: Path) -> None:
    case_submodule(tmp_path)
    outer = tmp_path / "outer"
    sh(outer, "worktree", "add", "--quiet", "--detach", outer / ".worktrees" / "task")
    found = git.package_files(outer, Path())
    assert Path("vendored/inner/src/lib.rs") in found
    assert Path("src/lib.rs") in found
    assert not [path for path in found if path.parts[0] == ".worktrees"]


def test_a_call_in_the_users_stead_keeps_their_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = repository(tmp_path / "main")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert "GIT_DIR" not in git.environment(quiet=False)
    assert git.environment(quiet=False)["LC_ALL"] == "C.UTF-8"
    assert git.environment()["LC_ALL"] == "C"
    assert git.run_visibly(["branch", "topic"], main) == 0
    assert git.run_visibly(["branch", "topic"], main) == 128


def test_what_git_ignores(tmp_path: Path) -> None:
    """Tracked files are never ignored, whatever a pattern says; missing ones are by their names."""
    root = tmp_path / "project"
    root.mkdir()
    sh(root, "init", "-q")
    (root / ".gitignore").write_text("*.gen\nodd \xe4\n")
    for name in ("kept.gen", "new.rs", "made.gen", "odd \xe4"):
        (root / name).write_text("x")
    sh(root, "add", "-f", "kept.gen")
    names = ["kept.gen", "new.rs", "made.gen", "gone.gen", "gone.rs", "odd \xe4"]
    paths = [str(root / name) for name in names]
    found = git.ignored(root, paths)
    assert found == {str(root / name) for name in ("made.gen", "gone.gen", "odd \xe4")}
    assert git.ignored(root, paths[1:2]) == set()
    with pytest.raises(GitFailed):
        git.ignored(root, ["/elsewhere/file"])
    (root / "line\nbreak.gen").write_text("x")
    with pytest.raises(GitFailed):  # it is quoted: what git says is not what was asked
        git.ignored(root, [str(root / "line\nbreak.gen")])


def test_moves_are_those_of_gits_log(tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    sh(root, "init", "-q")
    assert git.moves(root / ".git") is None  # nothing ever moved
    for number in range(3):
        sh(root, "commit", "-q", "--allow-empty", "-m", f"tab\tand > {number}")
    sh(root, "switch", "-qc", "other \xe4".replace(" ", "-"))
    sh(root, "commit", "-q", "--allow-empty", "--amend", "-m", "again")
    sh(root, "switch", "-q", "trunk")
    told = ask(root, "log", "-g", "--date=unix", "--format=%gd%x00%gs", "HEAD", "--")
    assert told is not None
    expected = []
    for line in told.split("\n"):
        when, _, word = line.partition("\0")
        expected.append((int(when.rpartition("{")[2].rstrip("}")), word))
    assert git.moves(root / ".git") == expected
    linked = tmp_path / "linked"
    sh(root, "worktree", "add", "-q", "--detach", linked)
    sh(linked, "reset", "-q", "--hard", "HEAD")
    moves = git.moves(root / ".git/worktrees/linked")
    assert moves is not None
    # Making a worktree moves its HEAD, and git has no word for it.
    assert [word for _, word in moves] == [""]


def test_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    front = "0" * 40 + " " + "1" * 40 + " A Developer <a@b> "
    lines = [f"{front}{1_700_000_000 + number} +0000\tcommit: {number}" for number in range(2000)]
    (tmp_path / "logs/HEAD").write_text("\n".join(lines) + "\n")
    moves = git.moves(tmp_path)
    assert moves is not None
    assert 100 < len(moves) < 2000
    assert moves[0] == (1_700_001_999, "commit: 1999")
    assert moves == [(1_700_001_999 - n, f"commit: {1999 - n}") for n in range(len(moves))]


def test_a_main_checkout_alone_starts_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    root.mkdir()
    sh(root, "init", "-q")
    sh(root, "commit", "-q", "--allow-empty", "-m", "one")
    (root / "inside").mkdir()
    sh(root, "worktree", "add", "-q", "--detach", tmp_path / "linked")
    (_, both), main = git.checkouts(root), git.checkouts(root)[0]
    assert both.root == tmp_path / "linked"
    sh(root, "worktree", "remove", tmp_path / "linked")

    def refuse(*_: object) -> None:
        pytest.fail("git was started")

    with monkeypatch.context() as patch:
        patch.setattr(git, "Asked", refuse)
        assert git.checkouts(root / "inside") == [main]
