"""git's hooks: beside those of others, taken back exactly, and never in the way of git."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.projects import SOURCE, Build, cargo, cow, git, repository, settle, write

from cargo_cow import git as gateway
from cargo_cow.errors import HooksRefused
from cargo_cow.setup import hooks

if TYPE_CHECKING:
    from collections.abc import Callable

EVENTS = ("post-checkout", "post-merge", "post-rewrite")
TINY = {
    "Cargo.toml": '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n',
    "src/main.rs": 'fn main() { print!("{}", include_str!("text")); }\n',
    "src/text": "one",
    ".gitignore": "/target\nCargo.lock\n",
}


@pytest.fixture(autouse=True)
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that notes how the program was called by a hook."""
    program = tmp_path / "bin with 'quotes'" / "cargo-cow"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> "{tmp_path}/called"\nPYTHONPATH="{SOURCE}" exec '
        f'"{sys.executable}" -m cargo_cow "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("CARGO_COW_PROGRAM", str(program))
    return tmp_path / "called"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a second branch, and no target."""
    return _two_branches(repository(tmp_path / "main", TINY))


def _two_branches(root: Path) -> Path:
    git(root, "switch", "-qc", "other")
    write(root, {"src/text": "two"})
    git(root, "commit", "-qam", "two")
    git(root, "switch", "-q", "main")
    return root


def _calls(called: Path) -> list[str]:
    lines = called.read_text().splitlines() if called.exists() else []
    called.unlink(missing_ok=True)
    return lines


def _facts(*directories: Path) -> dict[str, tuple[object, ...]]:
    """Everything below the directories: kinds, modes, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for directory in directories:
        for path in sorted(directory.rglob("*")):
            kept = directory.name != ".git" or path.parts[len(directory.parts)] in (
                "hooks",
                "config",
                "cargo-cow",
            )
            if not kept:
                continue
            mode = path.lstat().st_mode
            what: object = None
            if stat.S_ISLNK(mode):
                what = path.readlink()
            elif stat.S_ISREG(mode):
                what = path.read_bytes()
            found[str(path)] = (mode, what)
    return found


def _install(root: Path, *, tracked: bool = False) -> hooks.Plan:
    plan = hooks.plan_install(root, tracked=tracked)
    assert hooks.carry_out(plan) == []
    assert hooks.plan_install(root, tracked=tracked).steps == ()
    assert hooks.installed(root)
    return plan


def _remove(root: Path) -> hooks.Plan:
    plan = hooks.plan_remove(root)
    assert hooks.carry_out(plan) == []
    assert hooks.plan_remove(root).steps == ()
    assert not hooks.installed(root)
    return plan


def _hook(path: Path, text: str, mode: int = 0o755) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


# -- what it is for


def test_a_switch_there_and_back_costs_plain_cargo_nothing(root: Path, tmp_path: Path) -> None:
    assert cow(root, tmp_path, "build").status == 0

    def there_and_back() -> Build:
        settle()
        git(root, "switch", "-q", "other")
        settle()
        git(root, "switch", "-q", "main")
        return cargo(root, tmp_path, "build")

    assert there_and_back().rustc == ["tiny"]  # plain Cargo
    assert cow(root, tmp_path, "build").rustc == []
    _install(root)
    assert there_and_back().rustc == []
    git(root, "switch", "-q", "other")
    assert cargo(root, tmp_path, "build").rustc == ["tiny"]
    told = subprocess.run([root / "target/debug/tiny"], capture_output=True, check=True)
    assert told.stdout == b"two"


@pytest.mark.parametrize(
    "there_and_back",
    [
        [["merge", "-q", "--no-ff", "-m", "m", "other"], ["switch", "-q", "--detach", "HEAD~"]],
        [["bisect", "start", "other", "main"], ["bisect", "reset"], ["switch", "-q", "main"]],
        [["rebase", "-q", "other"], ["switch", "-q", "--detach", "ORIG_HEAD"]],
    ],
    ids=["merge", "bisect", "rebase"],
)
def test_other_ways_there_and_back(
    root: Path, tmp_path: Path, there_and_back: list[list[str]]
) -> None:
    write(root, {"beside": "main's own"})
    git(root, "add", "-A")
    git(root, "commit", "-qm", "beside")
    assert cow(root, tmp_path, "build").status == 0
    _install(root)
    for arguments in there_and_back:
        settle()
        git(root, *arguments)
    assert (root / "src/text").read_text() == "one"
    assert cargo(root, tmp_path, "build").rustc == []


def test_a_rebase_is_prepared_once_at_its_end(root: Path, called: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(root, {name: name})
        git(root, "add", "-A")
        git(root, "commit", "-qm", name)
    assert cow(root, tmp_path, "build").status == 0
    _install(root)
    before = (root / "target/.cargo-cow/contents.json").stat().st_mtime_ns
    git(root, "rebase", "-q", "other")
    assert _calls(called) == ["hooks run post-checkout .", "hooks run post-rewrite ."]
    assert (root / "target/.cargo-cow/contents.json").stat().st_mtime_ns != before
    git(root, "switch", "-q", "--detach", "main~3")
    git(root, "branch", "-f", "behind", "main~3")
    git(root, "switch", "-q", "behind")
    _calls(called)
    git(root, "rebase", "-q", "main")  # nothing to pick: there is no post-rewrite
    assert _calls(called) == ["hooks run post-checkout ."]
    assert cargo(root, tmp_path, "build").rustc == ["tiny"]


# -- what costs next to nothing


def test_what_needs_no_program_does_not_start_one(root: Path, called: Path) -> None:
    _install(root)
    write(root, {"src/text": "edited"})
    git(root, "checkout", "--", "src/text")
    git(root, "checkout", "src/text")
    git(root, "switch", "-qc", "same")
    git(root, "commit", "-q", "--amend", "-m", "other words")
    assert _calls(called) == []
    (root / "Cargo.toml").unlink()
    git(root, "commit", "-qam", "no Cargo project")
    git(root, "switch", "-q", "main")
    assert _calls(called) == ["hooks run post-checkout ."]
    git(root, "switch", "-q", "same")
    assert _calls(called) == []


def test_without_a_target_nothing_is_loaded_and_nothing_made(root: Path) -> None:
    program = (
        "import sys; from cargo_cow.cli.main import main; "
        "assert main(['hooks', 'run', 'post-checkout', '.']) == 0; "
        "bad = [name for name in ('click', 'cargo_cow.prepare', 'cargo_cow.filesystems', "
        "'cargo_cow.snapshots') if name in sys.modules]; assert not bad, bad"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
    assert not (root / "target").exists()


# -- never in git's way


@pytest.mark.parametrize("program", ["exit 3", "kill -9 $$", "echo noise; exit 1", None])
def test_git_never_fails_for_us(root: Path, called: Path, program: str | None) -> None:
    _install(root)
    ours = Path(os.environ["CARGO_COW_PROGRAM"])
    if program is None:
        shutil.rmtree(ours.parent)  # uninstalled
    else:
        ours.write_text(f"#!/bin/sh\n{program}\n")
    done = subprocess.run(
        ["git", "switch", "-q", "other"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr in ("", "noise\n") or "Killed" in done.stderr
    shutil.rmtree(root / ".git/cargo-cow")
    git(root, "switch", "-q", "main")


@pytest.mark.parametrize(
    "harm",
    [
        lambda root: (root / "Cargo.toml").write_text("[package\n"),
        lambda root: (root / "target").write_text("not a directory"),
        lambda root: (root / "target").symlink_to("/nowhere"),
        lambda root: (root / "rust-toolchain.toml").write_text('[toolchain]\nchannel = "1.2.3"\n'),
    ],
    ids=["manifest", "file", "symlink", "toolchain"],
)
def test_a_checkout_that_cannot_be_prepared(
    root: Path, called: Path, harm: Callable[[Path], object]
) -> None:
    _install(root)
    harm(root)
    done = subprocess.run(
        ["git", "switch", "-q", "other"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert _calls(called) == ["hooks run post-checkout ."]


def test_a_build_that_runs_is_not_waited_for(root: Path, tmp_path: Path) -> None:
    assert cow(root, tmp_path, "build").status == 0
    _install(root)
    with (root / "target/debug/.cargo-lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = subprocess.run(
            ["git", "switch", "-q", "other"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "a build is running here" in done.stderr
        git(root, "switch", "-q", "main")
    # What was left undone is done by the next one.
    assert cow(root, tmp_path, "build", "-v").rustc == []


# -- beside others

_NOTE = 'echo "$(basename "$0") $* [$(cat)]" >> "$THEIRS"'
_PYTHON = f"""#!{sys.executable}
import os, sys
with open(os.environ["THEIRS"], "a") as file:
    name = os.path.basename(sys.argv[0])
    print(name, *sys.argv[1:], "[" + sys.stdin.read().strip() + "]", file=file)
sys.exit(7)
"""
_PRE_COMMIT = f"""#!/usr/bin/env bash
# File generated by pre-commit: https://pre-commit.com
HERE="$(cd "$(dirname "$0")" && pwd)"
hook=$(basename "$0")
status=0
if [ -x "$HERE/$hook.legacy" ]; then "$HERE/$hook.legacy" "$@" </dev/null; status=$?; fi
{_NOTE}
exit $((status | 7))
"""
THEIRS = {
    "sh": f"#!/bin/sh\n{_NOTE}\nexit 7\n",
    "bash that is strict": f"#!/usr/bin/env bash\nset -eu\n{_NOTE}\nexec sh -c 'exit 7'\n",
    "sh with an option": f"#!/bin/sh -eu\n{_NOTE}\nexit 7",
    "python": _PYTHON,
    "no first line": f"{_NOTE}\nexit 7\n",
    "pre-commit": _PRE_COMMIT,
    "lefthook": f'#!/bin/sh\n\nif [ "$LEFTHOOK" = "0" ]; then exit 0; fi\n{_NOTE}\nexit 7\n',
}


def _ran(root: Path, called: Path, theirs: Path, *, status: int = 7) -> None:
    """Both run at a checkout and a rewrite: theirs with its arguments, input and status."""
    theirs.unlink(missing_ok=True)
    _calls(called)
    environment = {**os.environ, "THEIRS": str(theirs)}
    done = subprocess.run(["git", "switch", "-q", "other"], cwd=root, env=environment, check=False)
    assert done.returncode == (1 if status else 0)
    commits = [git(root, "rev-parse", name) for name in ("main", "other")]
    assert theirs.read_text() == f"post-checkout {commits[0]} {commits[1]} 1 []\n"
    assert _calls(called) == ["hooks run post-checkout ."]
    theirs.unlink()
    done = subprocess.run(
        ["git", "hook", "run", "--to-stdin=src/text", "post-rewrite", "--", "rebase"],
        cwd=root,
        env=environment,
        check=False,
    )
    assert done.returncode == status
    assert theirs.read_text() == "post-rewrite rebase [two]\n"
    assert _calls(called) == ["hooks run post-rewrite ."]
    subprocess.run(["git", "switch", "-q", "main"], cwd=root, env=environment, check=False)


@pytest.mark.parametrize("kind", list(THEIRS))
def test_beside_a_hook(root: Path, called: Path, tmp_path: Path, kind: str) -> None:
    for event in EVENTS:
        _hook(root / ".git/hooks" / event, THEIRS[kind], 0o750)
    before = _facts(root / ".git")
    _install(root)
    _ran(root, called, tmp_path / "theirs")
    _remove(root)
    assert _facts(root / ".git") == before


class TestFiles:
    """git before 2.54: the line goes into files, which later ones run as well."""

    @pytest.fixture(autouse=True)
    def _given_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gateway, "knows_configured_hooks", lambda _: False)

    def test_pre_commit_runs_ours_first(self, root: Path, called: Path, tmp_path: Path) -> None:
        hook = root / ".git/hooks/post-checkout"
        _hook(hook, _PRE_COMMIT)
        _install(root)
        assert hook.read_text() == _PRE_COMMIT
        theirs = tmp_path / "theirs"
        subprocess.run(
            ["git", "switch", "-q", "other"],
            cwd=root,
            env={**os.environ, "THEIRS": str(theirs)},
            check=False,
        )
        assert theirs.read_text().startswith("post-checkout ")
        assert _calls(called) == ["hooks run post-checkout ."]
        # `pre-commit uninstall` gives the name back to what it found there.
        hook.with_name("post-checkout.legacy").rename(hook)
        assert hooks.plan_install(root).steps == ()
        _remove(root)
        assert not hook.exists()

    def test_pre_commit_with_a_hook_of_before(
        self, root: Path, called: Path, tmp_path: Path
    ) -> None:
        hook = root / ".git/hooks/post-checkout"
        _hook(hook, _PRE_COMMIT)
        _hook(hook.with_name("post-checkout.legacy"), _PYTHON)
        before = _facts(root / ".git")
        _install(root)
        theirs = tmp_path / "theirs"
        subprocess.run(
            ["git", "switch", "-q", "other"],
            cwd=root,
            env={**os.environ, "THEIRS": str(theirs)},
            check=False,
        )
        assert [line.split()[0] for line in theirs.read_text().splitlines()] == [
            "post-checkout",
            "post-checkout",
        ]
        assert _calls(called) == ["hooks run post-checkout ."]
        _remove(root)
        assert _facts(root / ".git") == before

    def test_a_program_a_symlink_and_a_disabled_hook(self, root: Path, called: Path) -> None:
        directory = root / ".git/hooks"
        true = shutil.which("true")
        assert true is not None
        shutil.copy(true, directory / "post-checkout")
        _hook(root / "scripts/merge", "#!/bin/sh\nexit 0\n")
        (directory / "post-merge").symlink_to("../../scripts/merge")
        _hook(directory / "post-rewrite", "#!/bin/sh\nexit 9\n", 0o644)
        before = _facts(root / ".git", root / "scripts")
        _install(root)
        git(root, "switch", "-q", "other")
        git(root, "merge", "-q", "--no-ff", "-m", "m", "main")
        write(root, {"new": "new"})
        git(root, "switch", "-q", "main")
        git(root, "merge", "-q", "other")
        assert (
            subprocess.run(
                ["git", "hook", "run", "post-rewrite", "--", "rebase"], cwd=root, check=False
            ).returncode
            == 0
        )
        assert _calls(called) == [
            "hooks run post-checkout .",
            "hooks run post-checkout .",
            "hooks run post-merge .",
            "hooks run post-rewrite .",
        ]
        _remove(root)
        assert _facts(root / ".git", root / "scripts") == before

    def test_lines_of_another_version_are_renewed(self, root: Path, called: Path) -> None:
        _hook(root / ".git/hooks/post-checkout", "#!/bin/sh\nold words  # cargo-cow 0\nexit 0\n")
        _hook(root / ".git/hooks/post-merge", "#!/bin/sh\nold  # cargo-cow 0\n")
        _install(root)
        git(root, "switch", "-q", "other")
        assert _calls(called) == ["hooks run post-checkout ."]
        _remove(root)
        assert (root / ".git/hooks/post-checkout").read_text() == "#!/bin/sh\nexit 0\n"
        assert not (root / ".git/hooks/post-merge").exists()

    def test_a_manager_that_drops_the_line_is_told(
        self, root: Path, called: Path, tmp_path: Path
    ) -> None:
        """As lefthook does when its configuration changes; what it finds first it calls .old."""
        hook = root / ".git/hooks/post-checkout"
        _install(root)
        hook.rename(hook.with_name("post-checkout.old"))
        _hook(hook, "#!/bin/sh\n# LEFTHOOK\nexit 0\n")
        assert not hooks.installed(root)
        told = cow(root, tmp_path, "doctor").output
        assert "cargo cow hooks install" in told
        plan = _install(root)
        assert any("lefthook" in remark for remark in plan.remarks)
        git(root, "switch", "-q", "other")
        assert _calls(called) == ["hooks run post-checkout ."]
        assert not hooks.dropped(root)
        _remove(root)
        assert hook.read_text() == "#!/bin/sh\n# LEFTHOOK\nexit 0\n"
        assert not hook.with_name("post-checkout.old").exists()

    def test_what_was_added_to_our_file_stays(self, root: Path) -> None:
        _install(root)
        hook = root / ".git/hooks/post-checkout"
        with hook.open("a") as file:
            file.write("echo mine\n")
        _remove(root)
        assert hook.read_text() == "#!/bin/sh\necho mine\n"

    def test_husky(self, root: Path, called: Path, tmp_path: Path) -> None:
        room = root / ".husky/_"
        for event in EVENTS:
            _hook(room / event, '#!/usr/bin/env sh\n. "${0%/*}/h"\n')
        _hook(room / "h", f"#!/usr/bin/env sh\n{_NOTE}\nexit 7\n")
        (room / ".gitignore").write_text("*")
        git(root, "config", "core.hooksPath", ".husky/_")
        before = _facts(root / ".git", root / ".husky")
        plan = _install(root)
        assert any("husky" in remark for remark in plan.remarks)
        _ran(root, called, tmp_path / "theirs")
        assert git(root, "status", "--porcelain") == ""
        _remove(root)
        assert _facts(root / ".git", root / ".husky") == before

    def test_a_directory_for_all_repositories(
        self, root: Path, called: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared = tmp_path / "all hooks"
        shared.mkdir()
        config = tmp_path / "gitconfig"
        config.write_text(f'[core]\n\thooksPath = "{shared}"\n')
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
        plan = _install(root)
        assert any("all your repositories" in remark for remark in plan.remarks)
        git(root, "switch", "-q", "other")
        assert _calls(called) == ["hooks run post-checkout ."]
        another = _two_branches(repository(tmp_path / "another", TINY))
        git(another, "switch", "-q", "other")
        assert _calls(called) == []
        _remove(root)
        assert list(shared.iterdir()) == []

    def test_a_tracked_directory_is_source(self, root: Path, called: Path, tmp_path: Path) -> None:
        for event in EVENTS:
            _hook(root / ".githooks" / event, THEIRS["sh"])
        git(root, "add", "-A")
        git(root, "commit", "-qm", "hooks")
        git(root, "branch", "-qf", "other")
        git(root, "config", "core.hooksPath", ".githooks")
        before = _facts(root / ".git", root / ".githooks")
        with pytest.raises(HooksRefused) as caught:
            hooks.plan_install(root)
        assert hooks.line("post-checkout") in caught.value.hint
        told = cow(root, tmp_path, "hooks", "install")
        assert told.status == HooksRefused.exit_code
        assert "Traceback" not in told.output
        assert _facts(root / ".git", root / ".githooks") == before
        # Asked to.
        _install(root, tracked=True)
        _remove(root)
        assert _facts(root / ".git", root / ".githooks") == before
        # Committed by the team: it stays, and does nothing where we are not installed.
        _install(root, tracked=True)
        git(root, "commit", "-qam", "with the line")
        plan = hooks.plan_remove(root)
        assert hooks.carry_out(plan) == []
        assert any("committed" in remark for remark in plan.remarks)
        assert git(root, "status", "--porcelain") == ""
        environment = {**os.environ, "THEIRS": str(tmp_path / "theirs")}
        done = subprocess.run(
            ["git", "switch", "-q", "other"], cwd=root, env=environment, check=False
        )
        assert done.returncode == 1  # theirs
        assert _calls(called) == []

    def test_a_directory_that_is_not_there(self, root: Path) -> None:
        git(root, "config", "core.hooksPath", ".husky/_")
        with pytest.raises(HooksRefused, match="there is nothing"):
            hooks.plan_install(root)

    def test_what_is_in_the_way_is_told(self, root: Path) -> None:
        hook = root / ".git/hooks/post-checkout"
        _hook(hook, _PYTHON)
        _hook(hook.with_name("post-checkout.before-cargo-cow"), "something else")
        with pytest.raises(HooksRefused, match="in the way"):
            hooks.plan_install(root)

    def test_killed_between_any_two_steps(self, root: Path, called: Path, tmp_path: Path) -> None:
        for event in EVENTS:
            _hook(root / ".git/hooks" / event, _PYTHON)
        before = _facts(root / ".git")
        steps = hooks.plan_install(root).steps
        for count in range(len(steps)):
            plan = hooks.plan_install(root)
            hooks.carry_out(plan._replace(steps=plan.steps[:count]))
            _install(root)
            _ran(root, called, tmp_path / "theirs")
            plan = hooks.plan_remove(root)
            hooks.carry_out(plan._replace(steps=plan.steps[:count]))
            _remove(root)
            assert _facts(root / ".git") == before


# -- where repositories differ


def test_linked_worktrees_share_the_hooks(root: Path, called: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    git(root, "worktree", "add", "-q", str(there), "-b", "third")
    assert cow(there, tmp_path, "build").status == 0
    _install(there)
    assert (root / ".git/cargo-cow/hook").exists()
    settle()
    git(there, "switch", "-q", "other")
    settle()
    git(there, "switch", "-q", "third")
    assert len(_calls(called)) == 2
    assert cargo(there, tmp_path, "build").rustc == []
    git(root, "switch", "-q", "--detach", "other")
    assert _calls(called) == ["hooks run post-checkout ."]
    # A new worktree has no target, and gets none from a hook.
    git(root, "worktree", "add", "-q", str(tmp_path / "fourth"))
    assert not (tmp_path / "fourth/target").exists()
    assert cow(there, tmp_path, "hooks", "remove").status == 0
    assert not (root / ".git/cargo-cow/hook").exists()


def test_a_bare_repository_with_worktrees(root: Path, called: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "-q", "--bare", str(root), str(bare))
    _install(bare)
    there = tmp_path / "there"
    git(bare, "worktree", "add", "-q", str(there), "main")
    _calls(called)
    git(there, "switch", "-q", "other")
    assert _calls(called) == ["hooks run post-checkout ."]
    _remove(there)


def test_a_submodule_and_a_workspace_below_the_root(
    root: Path, called: Path, tmp_path: Path
) -> None:
    outer = repository(tmp_path / "outer", {"readme": "outer"})
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(root), "inner")
    inner = outer / "inner"
    git(inner, "fetch", "-q", str(root), "other:other")
    _install(inner)
    git(inner, "switch", "-q", "other")
    assert _calls(called) == ["hooks run post-checkout ."]
    assert not (outer / ".git/cargo-cow").exists()
    deep = repository(tmp_path / "deep", {f"it's rust/{name}": text for name, text in TINY.items()})
    rust = deep / "it's rust"
    _two_branches(rust)
    _install(rust)
    git(deep, "switch", "-q", "other")
    assert _calls(called) == ["hooks run post-checkout it's rust"]


def test_git_that_knows_hooks_in_its_configuration(
    root: Path, called: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is touched; the command is run as git (run-command.c) runs one with arguments."""
    _hook(root / ".git/hooks/post-checkout", THEIRS["sh"])
    _install_by_files = None if gateway.knows_configured_hooks(root) else hooks.plan_install(root)
    before = _facts(root / ".git")
    if _install_by_files is not None:
        assert hooks.carry_out(_install_by_files) == []  # from the time of an older git
    monkeypatch.setattr(gateway, "knows_configured_hooks", lambda _: True)
    _install(root)
    after = _facts(root / ".git")
    assert {path for path in after if after[path] != before.get(path)} == {
        str(root / ".git" / name) for name in ("config", "cargo-cow", "cargo-cow/hook")
    }
    found = gateway.configured_hook(root, "cargo-cow-post-checkout")
    assert found is not None
    text, event = found
    assert event == "post-checkout"
    for status, commits in ((0, ("a", "b", "1")), (0, ("a", "a", "1"))):
        done = subprocess.run(
            ["sh", "-c", f'{text} "$@"', text, *commits], cwd=root, check=False, stdin=None
        )
        assert done.returncode == status
    assert _calls(called) == ["hooks run post-checkout ."]
    shutil.rmtree(root / ".git/cargo-cow")
    subprocess.run(["sh", "-c", f'{text} "$@"', text, "a", "b", "1"], cwd=root, check=True)
    _install(root)
    _remove(root)
    assert _facts(root / ".git") == before


def test_the_way_through_the_command_line(root: Path, tmp_path: Path) -> None:
    before = _facts(root / ".git")
    told = cow(root, tmp_path, "hooks", "install", "--dry-run")
    assert told.status == 0
    assert "would write" in told.output
    assert _facts(root / ".git") == before
    assert cow(root, tmp_path, "hooks", "install", "--format", "json").status == 0
    assert "nothing to change" in cow(root, tmp_path, "hooks", "install").output
    assert cow(root, tmp_path, "hooks", "remove").status == 0
    assert _facts(root / ".git") == before
    assert "nothing to take back" in cow(root, tmp_path, "hooks", "remove").output
    loose = tmp_path / "loose"
    loose.mkdir()
    told = cow(loose, tmp_path, "hooks", "install")
    assert told.status == 20
    assert "hint:" in told.output


def test_init_and_uninstall(
    root: Path, called: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = _facts(root / ".git")
    there = tmp_path / "there"
    git(root, "worktree", "add", "-q", "-b", "there", str(there))
    told = cow(there, tmp_path, "init", "--hooks", "--no-convert")
    assert told.status == 0, told.output
    git(root, "switch", "-q", "other")
    assert _calls(called) == ["hooks run post-checkout ."]
    assert "git prepares the target" in cow(root, tmp_path, "doctor").output
    git(root, "worktree", "remove", "--force", str(there))
    # From anywhere.
    elsewhere = repository(tmp_path / "elsewhere", TINY)
    assert cow(elsewhere, tmp_path, "uninstall", "--dry-run").status == 0
    assert hooks.installed(root)
    told = cow(elsewhere, tmp_path, "uninstall")
    assert told.status == 0, told.output
    assert "took hooks out of" in told.output
    assert _facts(root / ".git") == before
    assert not (tmp_path / "state/cargo-cow").exists()


def test_where_nothing_can_be_noted_the_hooks_work(
    root: Path, called: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("no directory")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    told = cow(root, tmp_path, "hooks", "install")
    assert told.status == 1
    assert "has to be called here" in told.output
    git(root, "switch", "-q", "other")
    assert _calls(called) == ["hooks run post-checkout ."]
    assert cow(root, tmp_path, "hooks", "remove").status == 0
    assert not (root / ".git/cargo-cow").exists()
