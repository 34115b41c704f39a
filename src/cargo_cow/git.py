"""Gateway to git: checkouts, trees and file lists.

The only module that knows git's arguments, environment and output.  Machine formats only
(plumbing, NUL-separated); paths are bytes on the way and ``os.fsdecode``d here, so a name that
is not UTF-8 survives.

``checkout_of`` lies on the path of every build, so it reads git's files itself and starts git
only for what it does not understand (reftable, a relocated work tree).  ``tests/test_git.py``
holds it against git's own answer.
"""

# Strings and os.path, not pathlib: this runs in every build, and pathlib costs more than the reads.
# ruff: noqa: PTH112, PTH116, PTH117, PTH118, PTH119, PTH120, PTH123
from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow.errors import GitFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Checkout(NamedTuple):
    """One working directory of a project, or the bare repository behind it.

    ``root`` is physical (no symlink in it).  ``head`` is the commit, ``None`` while the branch
    is unborn; ``branch`` is the short name, ``None`` while HEAD is detached.  ``prunable`` ones
    are known to git but gone from disk.
    """

    root: Path
    git_dir: Path
    common_dir: Path
    head: str | None
    branch: str | None
    is_main: bool
    bare: bool
    prunable: bool


class Answer(NamedTuple):
    """What one git call gave."""

    status: int
    output: bytes
    error: str


# Variables that say *which* repository, index or object store is meant.  git sets them for its
# hooks and aliases (`git commit` runs hooks with GIT_INDEX_FILE, a hook of a linked worktree has
# GIT_DIR), and a call of ours from there, about another checkout, would silently answer for
# theirs.  Configuration (GIT_CONFIG_COUNT and the like), GIT_SSH and GIT_EXEC_PATH say *how*,
# are the user's, and stay.
_WHICH_REPOSITORY = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INDEX_VERSION",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_REFLOG_ACTION",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
    # These change what a path argument means.
    "GIT_GLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
    "GIT_LITERAL_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    # Trace output would end up in what we read, or in the user's terminal once per call.
    "GIT_TRACE",
    "GIT_TRACE2",
    "GIT_TRACE2_EVENT",
    "GIT_TRACE_SETUP",
)


def environment(*, quiet: bool = True) -> dict[str, str]:
    """The environment for a git call.

    ``quiet`` is for plumbing: it takes no lock that a user's git could stumble over (a refresh
    of the index by ``status``), asks for no password, fetches nothing a partial clone left
    behind, and speaks English whatever the locale.  A command run in the user's stead
    (``worktree add``) keeps theirs.
    """
    result = {name: value for name, value in os.environ.items() if name not in _WHICH_REPOSITORY}
    if quiet:
        result["GIT_OPTIONAL_LOCKS"] = "0"
        result["GIT_TERMINAL_PROMPT"] = "0"
        result["GIT_NO_LAZY_FETCH"] = "1"
        result["LC_ALL"] = "C"
    return result


def available() -> bool:
    """Whether there is a ``git`` on PATH.  A few stats; nothing is started."""
    for directory in os.get_exec_path():
        candidate = os.path.join(directory, "git")
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return True
    return False


class Asked:
    """Git plumbing that runs while we do something else.

    Not a thread for each: their turns at Python cost more than git does.  Nor a ``Popen``, whose
    module alone costs as much as git's answer.
    """

    def __init__(self, args: Sequence[str | os.PathLike[str]], cwd: Path) -> None:
        """Start it.  Raises GitFailed when git itself cannot be started."""
        self._process = 0
        self._answer: Answer | None = None
        self._pipes: dict[int, list[bytes]] = {}
        if not os.path.isdir(cwd):  # said by git itself it would be any failure
            raise GitFailed(f"cannot run git in {cwd}: {os.strerror(errno.ENOENT)}")
        actions: list[tuple[object, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        ]
        ends: list[int] = []
        try:
            for number in (1, 2):
                ours, theirs = os.pipe()
                ends.append(theirs)
                self._pipes[ours] = []
                actions.append((os.POSIX_SPAWN_DUP2, theirs, number))
            self._process = os.posix_spawnp(
                "git",
                ["git", "-C", os.fspath(cwd), *(os.fspath(word) for word in args)],
                environment(),
                file_actions=actions,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores
            )
        except OSError as error:
            self._close()
            raise _cannot_start(error, cwd) from error
        finally:
            for end in ends:
                os.close(end)

    def answer(self) -> Answer:
        """Wait for what it says, whatever the status.  A second time it is the same."""
        if self._answer is not None:
            return self._answer
        try:
            output, error = self._read()
        except BaseException:
            self.forget()
            raise
        status = self._ended()
        self._answer = Answer(status, output, error.decode("utf-8", "replace").strip())
        return self._answer

    def _read(self) -> list[bytes]:
        """All that it says on stdout and stderr."""
        waiting = select.poll()
        for pipe in self._pipes:
            waiting.register(pipe, select.POLLIN)
        pending = len(self._pipes)
        while pending:
            for pipe, _ in waiting.poll():
                data = os.read(pipe, 1 << 16)
                if data:
                    self._pipes[pipe].append(data)
                else:
                    waiting.unregister(pipe)
                    pending -= 1
        return [b"".join(parts) for parts in self._pipes.values()]

    def _ended(self) -> int:
        self._close()
        process, self._process = self._process, 0
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _close(self) -> None:
        for pipe in self._pipes:
            os.close(pipe)
        self._pipes = {}

    def forget(self) -> None:
        """End it: nobody wants the answer any more.  After the answer there is nothing to do."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            self._ended()


def call(args: Sequence[str | os.PathLike[str]], cwd: Path) -> Answer:
    """Run git plumbing in ``cwd`` and return what came, whatever the status.

    Raises GitFailed when git itself cannot be started.
    """
    return Asked(args, cwd).answer()


def run(args: Sequence[str | os.PathLike[str]], cwd: Path, *, check: bool = True) -> bytes:
    """Run git plumbing in ``cwd`` and return its standard output.

    With ``check`` a status other than 0 raises GitFailed with git's own words.
    """
    answer = call(args, cwd)
    if check and answer.status != 0:
        raise _failed(args, answer)
    return answer.output


def own_asked(directory: Path) -> Asked:
    """The question of `own_settings`, for who has other work to do meanwhile."""
    return Asked(["config", "--null", "--get-regexp", r"^cargo-cow\."], directory)


def own_settings(directory: Path, question: Asked | None = None) -> dict[str, str]:
    """``cargo-cow.*`` of the configuration that holds in ``directory``: names in small letters and
    without that beginning (git-config(1)); one without a value is true.

    Raises GitFailed when git itself cannot be started.
    """
    answer = (question or own_asked(directory)).answer()
    result = {}
    for entry in os.fsdecode(answer.output).split("\0"):
        name, separator, value = entry.partition("\n")
        result[name.removeprefix("cargo-cow.")] = value if separator else "true"
    return result


def own_truth(name: str, value: str) -> bool:
    """Git's words for yes and no.  Raises UsageError, which calls the setting ``name``."""
    if value.lower() in ("true", "yes", "on", "1"):
        return True
    if value.lower() in ("false", "no", "off", "0", ""):
        return False
    raise UsageError(f"{name} is true or false, not {value!a}")


def run_visibly(args: Sequence[str | os.PathLike[str]], cwd: Path) -> int:
    """Run a git command in the user's stead: their environment and language, their terminal.

    What git says goes to stderr (stdout is kept for data).  Returns git's exit status.
    """
    import subprocess
    import sys

    sys.stderr.flush()
    # Under a test's capture, or in a program that embeds us, stderr may have no descriptor.
    try:
        stderr: int | None = sys.stderr.fileno()
    except (OSError, ValueError):
        stderr = None
    try:
        done = subprocess.run(
            ["git", *args],
            cwd=cwd,
            env=environment(quiet=False),
            stdout=2 if stderr is None else stderr,
            stderr=stderr,
            check=False,
        )
    except OSError as error:
        raise _cannot_start(error, cwd) from error
    return done.returncode


def _cannot_start(error: OSError, cwd: Path) -> GitFailed:
    if isinstance(error, FileNotFoundError) and cwd.is_dir():
        return GitFailed("git is not installed", hint="install git, or put it on PATH")
    return GitFailed(f"cannot run git in {cwd}: {error.strerror or error}")


def _failed(args: Sequence[str | os.PathLike[str]], answer: Answer) -> GitFailed:
    what = " ".join(os.fspath(word) for word in args[:2])
    said = answer.error.splitlines()
    message = said[0] if said else f"exit status {answer.status}"
    hint = None
    if "dubious ownership" in answer.error:
        hint = "git config --global --add safe.directory <that directory>"
    elif "not a git repository" in answer.error:
        hint = "run the command inside a git checkout whose repository still exists"
    return GitFailed(f"git {what}: {message}", hint=hint)


# ---------------------------------------------------------------------------------------------
# Checkouts


def checkout_of(path: Path) -> Checkout | None:
    """The checkout that ``path`` lies in; ``None`` outside git, or where git is not installed.

    A bare repository is a Checkout with ``bare`` set and the repository as its root.  ``None``
    also inside a ``.git`` directory, and in a linked worktree whose repository is gone: git has
    no answer there either.  As git does, it stops looking at the border of a filesystem (which
    a Btrfs subvolume is, so ask with the workspace's root, not with the target) and at
    GIT_CEILING_DIRECTORIES.
    """
    if not available():
        return None
    start = os.path.realpath(path)
    if not os.path.isdir(start):
        start = os.path.dirname(start)
    try:
        found = _discover(start)
        return None if found is None else _describe(*found)
    except _AskGit:
        return _ask_git(Path(start))
    except OSError:
        # A repository that we may not read: git may have a better answer, or a clear error.
        return _ask_git(Path(start))


class _AskGit(Exception):
    """Git's files say something that is not read here."""


def _discover(start: str) -> tuple[str, str] | None:
    """(directory, git directory) of the innermost repository around ``start``."""
    ceilings = _ceilings()
    directory = start
    try:
        device = os.stat(directory).st_dev
    except OSError:
        return None
    while True:
        dot_git = os.path.join(directory, ".git")
        try:
            mode = os.stat(dot_git).st_mode
        except OSError:
            mode = 0
        if stat.S_ISREG(mode):
            pointed = _pointed_at(dot_git)
            # git dies here rather than looking further up: the checkout is broken.
            return (directory, pointed) if _is_git_dir(pointed) else None
        if stat.S_ISDIR(mode) and _is_git_dir(dot_git):
            return directory, os.path.realpath(dot_git)
        if _is_git_dir(directory):
            return directory, directory
        parent = os.path.dirname(directory)
        if parent in (directory, *ceilings):
            return None
        if os.stat(parent).st_dev != device and not _crosses_filesystems():
            return None
        directory = parent


def _ceilings() -> list[str]:
    """GIT_CEILING_DIRECTORIES: directories that are not looked at from below (git(1))."""
    result = []
    resolve = True
    for entry in os.environ.get("GIT_CEILING_DIRECTORIES", "").split(":"):
        if not entry:
            resolve = False  # git: after an empty entry, the rest is not resolved
        elif os.path.isabs(entry):
            result.append(os.path.realpath(entry) if resolve else entry.rstrip("/"))
    return result


def _crosses_filesystems() -> bool:
    value = os.environ.get("GIT_DISCOVERY_ACROSS_FILESYSTEM", "")
    return value.lower() in {"1", "true", "yes", "on"}


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _pointed_at(dot_git: str) -> str:
    """What a ``.git`` file points at, absolute.  Raises _AskGit where it is not such a file."""
    content = _read(dot_git)
    if not content.startswith(b"gitdir: "):
        raise _AskGit
    target = os.fsdecode(content[len(b"gitdir: ") :].rstrip(b"\r\n"))
    return os.path.realpath(os.path.join(os.path.dirname(dot_git), target))


def _common_dir(git_dir: str) -> str:
    try:
        pointed = os.fsdecode(_read(os.path.join(git_dir, "commondir")).rstrip(b"\r\n"))
    except FileNotFoundError:
        return git_dir
    return os.path.realpath(os.path.join(git_dir, pointed))


def _is_git_dir(directory: str) -> bool:
    """git's own test (setup.c, is_git_directory): HEAD, objects and refs."""
    if not os.path.lexists(os.path.join(directory, "HEAD")):
        return False
    common = _common_dir(directory)
    return os.path.isdir(os.path.join(common, "objects")) and os.path.isdir(
        os.path.join(common, "refs")
    )


class _Settings(NamedTuple):
    bare: bool | None = None
    work_tree: str | None = None
    per_worktree: bool = False


def _settings(config: str) -> _Settings:
    """The few settings that decide where a checkout is.  Raises _AskGit for anything unusual."""
    try:
        text = os.fsdecode(_read(config))
    except FileNotFoundError:
        return _Settings()
    bare: bool | None = None
    work_tree: str | None = None
    per_worktree = False
    section = ""
    for raw in text.split("\n"):
        line = raw.strip()
        if line.startswith("["):
            end = line.find("]")
            if end < 0:
                raise _AskGit
            section = line[1:end].strip().lower()
            line = line[end + 1 :].strip()
        if not line or line[0] in "#;" or section not in {"core", "extensions"}:
            continue
        name, equals, value = line.partition("=")
        name = name.strip().lower()
        value = value.strip() if equals else "true"
        if (section, name) == ("core", "bare"):
            bare = _truth(value)
        elif (section, name) == ("core", "worktree"):
            if any(special in value for special in '"\\#;'):
                raise _AskGit
            work_tree = value
        elif (section, name) == ("extensions", "worktreeconfig"):
            per_worktree = _truth(value)
        elif (section, name) == ("extensions", "refstorage") and value.lower() != "files":
            raise _AskGit
    return _Settings(bare, work_tree, per_worktree)


def _truth(value: str) -> bool:
    value = value.lower()
    if value in {"true", "yes", "on", "1"}:
        return True
    if value in {"false", "no", "off", "0", ""}:
        return False
    raise _AskGit


def _describe(directory: str, git_dir: str) -> Checkout | None:
    common = _common_dir(git_dir)
    linked = common != git_dir
    shared = _settings(os.path.join(common, "config"))
    own = _Settings()
    if shared.per_worktree:
        own = _settings(os.path.join(git_dir, "config.worktree"))
    # setup.c, check_repository_format_gently: in a linked worktree the shared core.bare and
    # core.worktree are about the main checkout and do not count.
    bare = own.bare if linked or own.bare is not None else shared.bare
    work_tree = own.work_tree if linked or own.work_tree is not None else shared.work_tree
    if work_tree is not None:
        if os.path.realpath(os.path.join(git_dir, work_tree)) != directory:
            raise _AskGit
    elif directory == git_dir and (linked or bare is False):
        return None  # inside a .git directory: git has no work tree here
    elif directory == git_dir and os.path.basename(directory) == ".git" and not bare:
        return None
    is_bare = work_tree is None and (directory == git_dir or bool(bare))
    head, branch = _head(git_dir, common)
    return Checkout(
        root=_root_of_bare(git_dir) if is_bare else Path(directory),
        git_dir=Path(git_dir),
        common_dir=Path(common),
        head=head,
        branch=branch,
        is_main=not linked,
        bare=is_bare,
        prunable=False,
    )


def names_work_tree(checkout: Checkout) -> bool:
    """Whether the repository says itself where this checkout is (``core.worktree``: submodules)."""
    git_dir, common = os.fspath(checkout.git_dir), os.fspath(checkout.common_dir)
    try:
        shared = _settings(os.path.join(common, "config"))
        own = shared if git_dir == common else _Settings()
        if shared.per_worktree and own.work_tree is None:
            own = _settings(os.path.join(git_dir, "config.worktree"))
    except _AskGit:
        answer = call(["config", "--get", "core.worktree"], checkout.root)
        return answer.status == 0
    return own.work_tree is not None


def _root_of_bare(git_dir: str) -> Path:
    """Where `git worktree list` says that a bare repository is: ``.git`` itself is not named."""
    return Path(git_dir.removesuffix("/.git"))


def _head(git_dir: str, common: str) -> tuple[str | None, str | None]:
    """(commit, short branch name) from HEAD, loose references and ``packed-refs``."""
    name = _symbolic(os.path.join(git_dir, "HEAD"))
    if not name.startswith("refs/"):
        return name, None
    branch = name.removeprefix("refs/heads/")
    for _ in range(5):  # git's own limit for references that point at references
        try:
            value = _symbolic(os.path.join(common, name))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return _packed(common, name), branch
        if not value.startswith("refs/"):
            return value, branch
        name = value
    raise _AskGit


def _symbolic(path: str) -> str:
    """The commit, or the name of the reference, in a reference file."""
    content = _read(path).strip()
    if content.startswith(b"ref:"):
        name = os.fsdecode(content[4:].strip())
        # Only these live in the common directory; refs/bisect and its like are per worktree.
        if not name.startswith(("refs/heads/", "refs/remotes/", "refs/tags/")):
            raise _AskGit
        return name
    if len(content) in {40, 64}:
        try:
            bytes.fromhex(content.decode("ascii"))
        except ValueError:
            raise _AskGit from None
        return content.decode("ascii")
    raise _AskGit


def _packed(common: str, name: str) -> str | None:
    try:
        content = _read(os.path.join(common, "packed-refs"))
    except FileNotFoundError:
        return None
    ending = b" " + os.fsencode(name)
    for line in content.split(b"\n"):
        if line.endswith(ending) and not line.startswith((b"#", b"^")):
            return line[: -len(ending)].decode("ascii")
    return None


def _line(output: bytes) -> str:
    """One value as rev-parse prints it: exactly one newline is git's, others are the path's."""
    return os.fsdecode(output.removesuffix(b"\n"))


def _ask_git(directory: Path) -> Checkout | None:
    answer = call(["rev-parse", "--absolute-git-dir"], directory)
    if answer.status != 0:
        return None
    git_dir = Path(os.path.realpath(_line(answer.output)))
    common = Path(
        os.path.realpath(
            directory / _line(run(["rev-parse", "--git-common-dir"], directory)),
        )
    )
    bare = _line(run(["rev-parse", "--is-bare-repository"], directory)) == "true"
    if bare:
        root = _root_of_bare(str(git_dir))
    else:
        answer = call(["rev-parse", "--show-toplevel"], directory)
        if answer.status != 0:
            return None
        root = Path(_line(answer.output))
    head = call(["rev-parse", "--verify", "--quiet", "HEAD"], directory)
    reference = call(["symbolic-ref", "--quiet", "HEAD"], directory)
    return Checkout(
        root=root,
        git_dir=git_dir,
        common_dir=common,
        head=_line(head.output) if head.status == 0 else None,
        branch=(
            _line(reference.output).removeprefix("refs/heads/") if reference.status == 0 else None
        ),
        is_main=git_dir == common,
        bare=bare,
        prunable=False,
    )


def checkouts(path: Path) -> list[Checkout]:
    """All checkouts of the project around ``path``, the main one (or the bare repository) first.

    Raises GitFailed outside git.
    """
    here = checkout_of(path)
    if here is not None and here.is_main and not here.bare and not _has_worktrees(here):
        return [here]
    answer = call(["worktree", "list", "--porcelain", "-z"], path)
    separator = b"\0"
    if answer.status == 129:  # git before 2.36 has no -z there; then newlines in paths are lost
        answer = call(["worktree", "list", "--porcelain"], path)
        separator = b"\n"
    if answer.status != 0:
        raise _failed(["worktree", "list"], answer)
    if here is not None:
        common = Path(os.path.realpath(here.common_dir))
    else:
        told = _line(run(["rev-parse", "--git-common-dir"], path))
        common = Path(os.path.realpath(path / told))
    administration = _administration(common)
    result: list[Checkout] = []
    for block in answer.output.split(separator * 2):
        fields: dict[bytes, bytes] = {}
        for line in block.split(separator):
            if line:
                key, _, value = line.partition(b" ")
                fields[key] = value
        if b"worktree" not in fields:
            continue
        root = Path(os.fsdecode(fields[b"worktree"]))
        is_main = not result
        if is_main and b"bare" not in fields and root == common:
            root = _main_root(common, path)
        head = os.fsdecode(fields.get(b"HEAD", b"")) or None
        if head is not None and not head.strip("0"):
            head = None
        result.append(
            Checkout(
                root=root,
                git_dir=common if is_main else administration.get(root, common),
                common_dir=common,
                head=head,
                branch=(
                    os.fsdecode(fields[b"branch"]).removeprefix("refs/heads/")
                    if b"branch" in fields
                    else None
                ),
                is_main=is_main,
                bare=b"bare" in fields,
                prunable=b"prunable" in fields,
            )
        )
    return result


def _has_worktrees(main: Checkout) -> bool:
    return os.path.lexists(main.common_dir / "worktrees")


def _main_root(common: Path, path: Path) -> Path:
    """The main checkout whose ``.git`` is a file (a submodule, ``--separate-git-dir``).

    `git worktree list` names the repository instead (git 2.47, worktree.c, get_main_worktree).
    """
    here = checkout_of(path)
    if here is not None and here.is_main:
        return here.root
    try:
        work_tree = _settings(str(common / "config")).work_tree
    except (_AskGit, OSError):
        work_tree = None
    return common if work_tree is None else Path(os.path.realpath(common / work_tree))


def _administration(common: Path) -> dict[Path, Path]:
    """Root of each linked worktree → its directory below ``<common>/worktrees``."""
    result: dict[Path, Path] = {}
    try:
        entries = sorted((common / "worktrees").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return result
    for entry in entries:
        try:
            dot_git = os.fsdecode((entry / "gitdir").read_bytes().rstrip(b"\r\n"))
        except OSError:
            continue
        # worktree.useRelativePaths (git 2.48): relative to the administrative directory.
        absolute = os.path.normpath(entry / dot_git)
        result[Path(absolute.removesuffix("/.git"))] = entry
    return result


# ---------------------------------------------------------------------------------------------
# Trees and files


def tree_id(checkout_root: Path, commit: str = "HEAD") -> str | None:
    """The tree of a commit; ``None`` where there is none (an unborn branch, an unknown name).

    Raises GitFailed outside git.
    """
    return tree_told(tree_asked(checkout_root, commit).answer())


def tree_asked(checkout_root: Path, commit: str = "HEAD") -> Asked:
    """The question of `tree_id`, for `tree_told`."""
    name = f"{commit}^{{tree}}"
    return Asked(["rev-parse", "--verify", "--quiet", "--end-of-options", name], checkout_root)


def tree_told(answer: Answer) -> str | None:
    """What `tree_id` returns, and raises."""
    if answer.status == 0:
        return _line(answer.output)
    if answer.error:
        raise _failed(["rev-parse"], answer)
    return None


def changed_paths(checkout_root: Path, other: str, against: str = "HEAD") -> list[Path]:
    """Paths (relative to the checkout) in which two commits or trees differ.

    Equal trees give an empty list; ``len`` is the distance by which donors are compared.
    Uncommitted edits do not count.  Raises GitFailed for a name that is unknown here.
    """
    if "-" in (other[:1], against[:1]):
        raise GitFailed(f"not a commit: {other if other.startswith('-') else against}")
    output = run(
        ["diff-tree", "-r", "--name-only", "--no-renames", "-z", other, against, "--"],
        checkout_root,
    )
    return [Path(os.fsdecode(name)) for name in output.split(b"\0") if name]


def object_exists(checkout_root: Path, name: str) -> bool:
    """Whether this repository holds the object (a shallow clone may lack a donor's commit)."""
    if name.startswith("-"):
        return False
    return call(["cat-file", "-e", name], checkout_root).status == 0


def package_files(root: Path, subdirectory: Path) -> list[Path]:
    """Files below ``root / subdirectory`` that a compiler could read there, relative to ``root``.

    Tracked and untracked ones, those of submodules, and of the ignored ones the ``.env`` kind
    (``.env``, ``.env.*``, ``*.env``), as they are read by macros although nobody commits them.
    Only what exists; symlinks are named, not followed.  Left out: other ignored files, linked
    worktrees that lie inside, and untracked directories with a CACHEDIR.TAG (a target that
    nobody ignores).  Sorted.  Raises GitFailed outside git.
    """
    return sorted(Path(name) for name in package_names(root, subdirectory))


class Listing:
    """The question of `package_names` for a whole checkout, asked before the answer is needed."""

    def __init__(self, root: Path) -> None:
        """Raises GitFailed when git itself cannot be started."""
        self._asked: list[Asked] = []
        try:
            self._asked += (Asked(args, root) for args in _LISTING)
        except BaseException:
            self.forget()
            raise

    def answers(self) -> list[bytes]:
        """What was said.  Raises GitFailed."""
        return _answers(_LISTING, self._asked)

    def forget(self) -> None:
        """End it, unless it was answered."""
        for asked in self._asked:
            asked.forget()


# Each reads the whole tree: at the same time.  git looks for what is deleted faster than we.
_LISTING = [
    "ls-files -t -s -z --cached --deleted --others --exclude-standard".split(),
    "ls-files -z --others --ignored --exclude-standard --directory".split(),
]


def package_names(
    root: Path, subdirectory: Path = Path(), listing: Listing | None = None
) -> list[str]:
    """As `package_files`, as strings in no order: there may be thousands.

    ``listing``: the question, if it was asked before (of the whole checkout).
    """
    top = root / subdirectory
    found: set[bytes] = set()
    untracked: list[bytes] = []
    nested: list[bytes] = []
    deleted: set[bytes] = set()
    told, ignored = (listing or Listing(top)).answers()
    base = os.fsencode(top)
    for line in told.split(b"\0"):
        if line.startswith(b"? "):
            name = line[2:]
            if name.endswith(b"/"):
                nested.append(name)
            else:
                untracked.append(name)
            continue
        # H 100644 <object> 0<TAB>name
        facts, _, name = line.partition(b"\t")
        if facts[2:8] == b"160000":
            nested.append(name + b"/")
        elif facts[:1] == b"R":
            deleted.add(name)
        elif name and (facts[:1] != b"S" or os.path.lexists(os.path.join(base, name))):
            found.add(name)  # S: outside a sparse checkout, most of the time
    found -= deleted
    found.update(_without_caches(base, untracked))
    for name in ignored.split(b"\0"):
        if name.endswith(b"/"):
            found.update(_environment_files(base, name))
        elif name and _environment_kind(name):
            found.add(name)
    front = "" if subdirectory == Path() else f"{subdirectory}/"
    result = [f"{front}{os.fsdecode(name)}" for name in found]
    for name in nested:
        below = top / os.fsdecode(name)
        inner = checkout_of(below)
        if inner is None or inner.root != Path(os.path.realpath(below)):
            continue
        if not inner.is_main:
            continue  # somebody else's task, in a directory below ours
        prefix = f"{front}{os.fsdecode(name)}"
        result.extend(f"{prefix}{file}" for file in package_names(inner.root))
    return result


def ignored(root: Path, paths: Sequence[str]) -> set[str]:
    """Those of ``paths`` (absolute) that git ignores in the checkout at ``root``: neither tracked
    nor to be added.

    Raises GitFailed where git has no answer for one of them.
    """
    answer = call(["-c", "core.quotePath=false", "check-ignore", "--", *paths], root)
    if answer.status == 1:
        return set()
    found = set(os.fsdecode(answer.output).splitlines())
    if answer.status or not found.issubset(paths):  # names with odd letters are quoted all the same
        raise _failed(["check-ignore"], answer)
    return found


def is_environment_file(name: str) -> bool:
    """Whether a file is of the ``.env`` kind, which `package_files` lists although git ignores
    it."""
    return _environment_kind(os.fsencode(name))


def _answers(calls: Sequence[Sequence[str]], asked: Sequence[Asked]) -> list[bytes]:
    answers = [each.answer() for each in asked]
    for args, answer in zip(calls, answers, strict=True):
        if answer.status != 0:
            raise _failed(args, answer)
    return [answer.output for answer in answers]


def _without_caches(base: bytes, names: list[bytes]) -> Iterator[bytes]:
    """Untracked files that exist and do not lie in a tagged cache directory."""
    caches = tuple(
        name.removesuffix(b"CACHEDIR.TAG") for name in names if name.endswith(b"/CACHEDIR.TAG")
    )
    for name in names:
        if caches and name.startswith(caches):
            continue
        if os.path.lexists(os.path.join(base, name)):
            yield name


def _environment_kind(name: bytes) -> bool:
    last = name.rpartition(b"/")[2]
    return last == b".env" or last.startswith(b".env.") or last.endswith(b".env")


def _environment_files(base: bytes, directory: bytes) -> Iterator[bytes]:
    """``.env`` files below an ignored directory.

    git names such a directory instead of its content.  Caches and other checkouts are not
    entered: the target alone may hold a hundred thousand files.
    """
    pending = [directory]
    while pending:
        current = pending.pop()
        files: list[bytes] = []
        directories: list[bytes] = []
        try:
            with os.scandir(os.path.join(base, current)) as entries:
                for entry in entries:
                    name = current + entry.name
                    if entry.name in {b"CACHEDIR.TAG", b".git"}:
                        directories = []
                        files = []
                        break
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(name + b"/")
                    elif _environment_kind(name):
                        files.append(name)
        except OSError:
            continue
        yield from files
        pending.extend(directories)


def head_changed(checkout: Checkout) -> int:
    """When HEAD last came to name another commit (ns since 1970), at the latest.

    The mtime of HEAD's log, which every move of HEAD appends to; without a log that of HEAD and
    of its branch.
    """
    times = []
    log = checkout.git_dir / "logs" / "HEAD"
    others = [checkout.git_dir / "HEAD", checkout.common_dir / "packed-refs"]
    if checkout.branch is not None:
        others.append(checkout.common_dir / "refs" / "heads" / checkout.branch)
    for path in [log] if log.exists() else others:
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime_ns)
    return max(times, default=0)


# ---------------------------------------------------------------------------------------------
# Hooks


def moves(git_dir: Path) -> list[tuple[int, str]] | None:
    """When HEAD of a checkout moved (seconds) and git's word for it, newest first, at least the
    last hundred if there are so many; None where its log is not a file.

    The file is git's own, and read by all that speak of it (gitrepository-layout(5)): one line each
    with both commits, who, when, and after a tab the word, if there is one.
    """
    try:
        with open(git_dir / "logs" / "HEAD", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    found = []
    for line in reversed(lines[1 if size > _LOG_BYTES else 0 :]):
        front, _, word = line.partition(b"\t")  # a new worktree's first line has no word, nor a tab
        seconds = front.rpartition(b"> ")[2].split(b" ")[0]
        if seconds.isdigit():
            found.append((int(seconds), os.fsdecode(word)))
    return found


_LOG_BYTES = 1 << 16


def forget_repository() -> None:
    """Take the variables that say which repository is meant out of our own environment.

    For who is called by a hook, and will run other programs (Cargo runs git, too).
    """
    for name in _WHICH_REPOSITORY:
        os.environ.pop(name, None)


class HooksDirectory(NamedTuple):
    """The directory that git looks into; ``scope`` of ``core.hooksPath``, None if it is unset."""

    path: Path
    scope: str | None


def hooks_directory(root: Path) -> HooksDirectory:
    """Where git looks for hooks when it runs in ``root``, a checkout or a bare repository."""
    path = Path(os.path.realpath(root / _line(run(["rev-parse", "--git-path", "hooks"], root))))
    answer = call(["config", "--show-scope", "-z", "--get", "core.hooksPath"], root)
    scope = os.fsdecode(answer.output).partition("\0")[0] if answer.status == 0 else None
    return HooksDirectory(path, scope)


def would_track(path: Path) -> bool:
    """Whether ``path`` lies in a checkout where git tracks it, or would if it were added."""
    directory = path.parent
    while not directory.is_dir():
        directory = directory.parent
    checkout = checkout_of(directory)
    if checkout is None or checkout.bare:
        return False
    relative = os.path.relpath(path, checkout.root)
    if call(["ls-files", "--error-unmatch", "--", relative], checkout.root).status == 0:
        return True
    return call(["check-ignore", "-q", "--", relative], checkout.root).status == 1


def is_committed(path: Path) -> bool:
    """Whether the file is tracked and as it was committed."""
    checkout = checkout_of(path.parent)
    if checkout is None or checkout.bare:
        return False
    relative = os.path.relpath(path, checkout.root)
    if call(["ls-files", "--error-unmatch", "--", relative], checkout.root).status != 0:
        return False
    return call(["diff", "--quiet", "HEAD", "--", relative], checkout.root).status == 0


def knows_configured_hooks(root: Path) -> bool:
    """Whether this git runs ``hook.<name>.command`` (from 2.54 on), by asking it."""
    asked = ["-c", "hook.cargo-cow-try.command=true", "-c", "hook.cargo-cow-try.event=post-merge"]
    answer = call([*asked, "hook", "list", "post-merge"], root)
    return answer.status == 0 and b"cargo-cow-try" in answer.output


def configured_hook(root: Path, name: str) -> tuple[str, str] | None:
    """(command, event) of the configured hook ``name`` in the repository's own configuration."""

    def value(key: str) -> str:
        asked = ["config", "--local", "-z", "--get", f"hook.{name}.{key}"]
        return os.fsdecode(call(asked, root).output.removesuffix(b"\0"))

    found = value("command"), value("event")
    return found if any(found) else None


def configure_hook(root: Path, name: str, command: str, event: str) -> None:
    """Set the configured hook; the command first, as git dies of an event that has none."""
    for key, value in (("command", command), ("event", event)):
        run(["config", "--local", f"hook.{name}.{key}", value], root)


def forget_hook(root: Path, name: str) -> None:
    """Remove the configured hook in one step."""
    run(["config", "--local", "--remove-section", f"hook.{name}"], root)
