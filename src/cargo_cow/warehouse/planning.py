"""Which units a Cargo command will ask for: learned from Cargo itself.

Cargo plans all units before it runs the first one, and writes their names to its log
(``fingerprint at: …``, ``core/compiler/fingerprint/mod.rs::prepare_target``).  So the very command
is run once more, in an empty target directory and with a compiler that answers questions and
compiles nothing (``native/src/shim/planning.rs``), and ended when the first compile has failed.
That takes about what a build with nothing to do takes, and the answer is kept in the store for as
long as no manifest, lock file, configuration, argument or variable changes.  A wrong answer costs
compiles and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cargo_cow.cargo import configuration
from cargo_cow.cargo.target import Layout, unit_at
from cargo_cow.cargo.workspace import cargo_program
from cargo_cow.errors import CowError

if TYPE_CHECKING:
    import subprocess
    import threading

    from cargo_cow.cargo.workspace import Workspace
    from cargo_cow.prepare.proof import Plan

_ROOM = "planning"
INFO = ".rustc_info.json"
PROBES = f"{_ROOM}/{INFO}"
"""What Cargo asked the compiler about itself, below the store."""
_FORMAT = 2
_MOST = 200
"""Answers that are kept; each is a few kilobytes."""
_ENDING = 0.5
"""Seconds that Cargo is given to end once its first compile has failed."""
_LONGEST = 120.0
"""Seconds after which Cargo is no longer waited for (it may be downloading)."""

_LEGACY = re.compile(r"^(?:(.+)/)?\.fingerprint/(.+)-([0-9a-f]{16})/([^/]+)$")
_NEW = re.compile(r"^(?:(.+)/)?build/(.+)/([0-9a-f]{16})/fingerprint/([^/]+)$")
_LOGGED = re.compile(r"fingerprint at: (.+)$")
_SAID = ("Updating", "Downloading", "Downloaded", "Blocking", "Locking", "Adding", "Fetch")
_VERBS = frozenset("b bench build c check clippy r run rustc t test".split())
"""Verbs whose units are learned; documentation is never kept."""


class Asked(NamedTuple):
    """What Cargo will ask for: unit keys (as ``Unit.key``) and the stem of each fingerprint.

    ``rustc`` is the compiler that Cargo calls, ``toolchain`` the one that rustup chose for it.
    """

    layout: Layout
    units: tuple[tuple[str, str], ...]
    rustc: str
    toolchain: str | None


def is_planned(arguments: Sequence[str]) -> bool:
    """Whether the units of ``cargo <arguments>`` can be learned, given a Cargo.lock, and what they
    are made with."""
    verb = next((word for word in arguments if not word.startswith("+")), "")
    return verb in _VERBS and not any(map(_may_set_variables, _configured(arguments)))


def _configured(arguments: Sequence[str]) -> Iterator[str]:
    """The values of ``--config``."""
    words = iter(arguments)
    for word in words:
        if word == "--":
            return
        if word == "--config":
            yield next(words, "")
        elif word.startswith("--config="):
            yield word.removeprefix("--config=")


def _may_set_variables(value: str) -> bool:
    """Whether an argument may set variables for scripts and compilers, or a linker, which are
    compared as files and variables have them: as ``env.NAME=…``, or in a file that it names."""
    key, is_value, _ = value.partition("=")
    return not is_value or any(word in key for word in ("env", "include", "linker", "\\"))


def is_learned(workspace: Workspace, arguments: Sequence[str]) -> bool:
    """Whether `ask` can have an answer for ``cargo <arguments>``."""
    return is_planned(arguments) and (workspace.root / "Cargo.lock").is_file()


def remembered(
    workspace: Workspace, arguments: Sequence[str], cwd: Path, store: Path
) -> Asked | None:
    """What `ask` would say without running Cargo; None if it would have to."""
    return _remembered(store, _selection(workspace, list(arguments), cwd))


def ask(
    workspace: Workspace,
    arguments: Sequence[str],
    cwd: Path,
    store: Path | None = None,
    *,
    learned: Path | None = None,
) -> Asked | None:
    """What ``cargo <arguments>`` in ``cwd`` would ask for; None where that cannot be learned.

    ``store`` keeps answers.  ``learned`` is a target: where Cargo has to be asked, it asks the
    compiler about itself, and the target is given the answers of now, as if it had done so there.
    Nothing is raised: without an answer Cargo goes on as it would have.
    """
    words = list(arguments)
    if not is_learned(workspace, words):
        return None
    if store is not None:
        known = remembered(workspace, words, cwd, store)
        if known is not None:
            return known
    with Asking(workspace, words, cwd, store, learned) as asking:
        return asking.answer()


class Asking:
    """Cargo, asked what ``cargo <arguments>`` would ask for, while something else is done."""

    def __init__(
        self,
        workspace: Workspace,
        arguments: Sequence[str],
        cwd: Path,
        store: Path | None,
        learned: Path | None,
    ) -> None:
        """As `ask`, which looks before whether the answer is known.  Raises nothing."""
        self._store = store
        self._learned = learned
        self._selection = _selection(workspace, list(arguments), cwd)
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError, CowError):
            self._begin(list(arguments), cwd)

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Whatever came of it, nothing of it is left; a second time nothing happens."""
        import shutil

        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            assert process.stderr is not None
            process.stderr.close()
            process.wait()
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)

    def _begin(self, words: list[str], cwd: Path) -> None:
        import shutil
        import subprocess
        import tempfile

        from cargo_cow import native

        self._scratch = Path(os.path.realpath(tempfile.mkdtemp(prefix="cargo-cow-plan-")))
        target = self._scratch / "target"
        target.mkdir()
        probes = None if self._store is None else self._store / PROBES
        if self._learned is None and probes is not None and probes.is_file():
            # What Cargo asked the compiler before; it judges itself whether that still holds.  In
            # a target without any it would ask, and go by what is said now.
            shutil.copyfile(probes, target / INFO)
        environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("CARGO_LOG")
            },
            "CARGO_TARGET_DIR": str(target),
            "CARGO_BUILD_BUILD_DIR": str(target),
            "CARGO_LOG": "cargo::core::compiler::fingerprint=debug",
            "CARGO_TERM_COLOR": "never",
            "CARGO_TERM_PROGRESS_WHEN": "never",
            "CARGO_TERM_QUIET": "false",
            "RUST_BACKTRACE": "0",
            "RUST_LIB_BACKTRACE": "0",
            "RUSTC_WRAPPER": str(native.program()),
            "CARGO_COW_PLANNING": str(self._scratch / "compilers"),
        }
        self._process = subprocess.Popen(
            [cargo_program(), *_without_target(words)],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def answer(self) -> Asked | None:
        """What Cargo says, which the store remembers; None where it does not say it."""
        if self._process is None or self._scratch is None:
            return None
        target = self._scratch / "target"
        try:
            names = _listen(self._process)
            made = target / INFO
            if made.is_file():
                if self._store is not None:
                    _keep_probes(made, self._store / PROBES)
                if self._learned is not None:
                    _tell(made, self._learned)
        except OSError:
            return None
        asked = _understood(names, target, self._scratch / "compilers")
        if asked is not None and self._store is not None:
            _remember(self._store, self._selection, asked)
        return asked


def is_complete(asked: Asked, build_dir: str) -> bool:
    """Whether every unit that is asked for is in the target, fresh or not.  A few stats."""
    return all(
        Path(unit_at(build_dir, asked.layout, key, stem).hash_file).exists()
        for key, stem in asked.units
    )


def is_fresh(asked: Asked, judged: Plan) -> bool:
    """Whether a proof found every unit that is asked for to be right, or no unit can help.

    A script that Cargo always reruns has Cargo build all that depends on it, whatever is there.
    """
    from cargo_cow.prepare.proof import HOPELESS  # who has a plan has loaded that already

    found = {verdict.key: verdict for verdict in judged.verdicts}

    def is_hopeless(key: str) -> bool:
        verdict = found.get(key)
        if verdict is None or verdict.reason is None:
            return False
        if verdict.reason.code == "dependency-unproven":
            return is_hopeless(verdict.reason.subject)
        return verdict.reason.code in HOPELESS

    return not any(
        key in found and found[key].status in ("unproven", "dirty") and not is_hopeless(key)
        for key, _ in asked.units
    )


def _selection(workspace: Workspace, arguments: list[str], cwd: Path) -> str:
    """A digest of whatever may change the answer."""
    from blake3 import blake3

    files = [workspace.root / name for name in ("Cargo.toml", "Cargo.lock")]
    files += [package.root / "Cargo.toml" for package in workspace.members]
    files += [Path(outside) / "Cargo.toml" for outside in workspace.outside]
    files += configuration.files_for(cwd)
    files += [
        above / name
        for above in (workspace.root, *workspace.root.parents)
        for name in ("rust-toolchain.toml", "rust-toolchain")
    ]
    stats: list[object] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            stats.append(None)
            continue
        stats.append([str(file), status.st_ino, status.st_size, status.st_mtime_ns])
    stats += [_targets(package.root) for package in workspace.members]
    variables = sorted(
        (name, value)
        for name, value in os.environ.items()
        if (name.startswith(("CARGO", "RUST")) and not name.startswith("CARGO_COW_"))
        or name == "PATH"
    )
    # Where the target lies is told by who builds in one way and by who keeps in another; a unit's
    # name does not depend on it.
    text = json.dumps([_FORMAT, str(cwd), _without_target(arguments), stats, variables])
    return str(blake3(text.encode("utf-8", "surrogateescape")).hexdigest())


def _targets(root: Path) -> list[object]:
    """The names by which Cargo finds a package's targets (``util/toml/targets.rs``).

    Not their times: an editor that saves by a rename changes those of the directory.
    """
    found: list[object] = [
        os.path.isfile(f"{root}/{name}") for name in ("build.rs", "src/lib.rs", "src/main.rs")
    ]
    for room in ("src/bin", "tests", "examples", "benches"):
        try:
            names = sorted(os.listdir(f"{root}/{room}"))
        except OSError:
            continue
        found += [
            f"{room}/{name}"
            for name in names
            if name.endswith(".rs") or os.path.isfile(f"{root}/{room}/{name}/main.rs")
        ]
    return found


def _remembered(store: Path, selection: str) -> Asked | None:
    try:
        value = json.loads((store / _ROOM / selection[:32]).read_bytes())
        units = tuple((str(key), str(stem)) for key, stem in value["units"])
        layout: Layout = "new" if value["layout"] == "new" else "legacy"
        return Asked(layout, units, str(value["rustc"]), value["toolchain"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(store: Path, selection: str, asked: Asked) -> None:
    room = store / _ROOM
    try:
        room.mkdir(mode=0o700, exist_ok=True)
        path = room / selection[:32]
        temporary = room / f".{path.name}.{os.getpid()}"
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(asked._asdict()))
        temporary.replace(path)
        kept = sorted(room.iterdir(), key=lambda entry: entry.stat().st_mtime)
        for old in kept[:-_MOST]:
            old.unlink(missing_ok=True)
    except OSError:
        return


def _without_target(arguments: list[str]) -> list[str]:
    """The arguments without ``--target-dir``, which counts more than a variable, and without what
    follows ``--``."""
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            break
        if argument == "--target-dir":
            next(rest, None)
        elif not argument.startswith("--target-dir=") and argument not in ("-q", "--quiet"):
            found.append(argument)
    return found


def _listen(process: subprocess.Popen[bytes]) -> list[str]:
    """Let Cargo run to its first compile; the paths of fingerprints that it names.

    What it says of the registry it says once, so people hear it now.
    """
    import threading

    found: list[str] = []
    ended: threading.Timer | None = None
    late = threading.Timer(_LONGEST, process.kill)
    late.daemon = True
    late.start()
    try:
        assert process.stderr is not None
        for raw in process.stderr:
            line = os.fsdecode(raw).rstrip("\n")
            logged = _LOGGED.search(line)
            if ended:
                continue
            if logged is not None:
                found.append(logged[1])
            elif line.startswith("error"):
                # The first compile, which comes when all is planned, or what is wrong.  Cargo
                # writes down at its end what it learned of the compiler; it ends at once, but
                # where it goes on with all the rest (`--keep-going`).
                ended = threading.Timer(_ENDING, process.kill)
                ended.daemon = True
                ended.start()
            elif line.lstrip().startswith(_SAID) and line.startswith("  "):
                print(line, file=sys.stderr)
    finally:
        late.cancel()
        if ended is None or not _ends(process):
            process.kill()
        if ended is not None:
            ended.cancel()
    return found


def _ends(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ends by itself, now that it has closed its stderr."""
    import subprocess

    try:
        process.wait(_ENDING)
    except subprocess.TimeoutExpired:
        return False
    return True


def _keep_probes(made: Path, kept: Path) -> None:
    import shutil

    try:
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = kept.with_name(f"{kept.name}.{os.getpid()}")
        temporary.touch(mode=0o600)
        shutil.copyfile(made, temporary)
        temporary.replace(kept)
    except OSError:
        return


def _tell(made: Path, learned: Path) -> None:
    """Give a target what Cargo learned just now, if it is there by now and knows nothing."""
    import shutil

    if learned.is_dir() and not (learned / INFO).exists():
        shutil.copyfile(made, learned / INFO)


def _understood(names: list[str], target: Path, notes: Path) -> Asked | None:
    units: dict[str, str] = {}
    layout: Layout = "legacy"
    for name in names:
        if not name.startswith(f"{target}/"):
            return None  # it plans elsewhere than it was told to
        inside = name[len(str(target)) + 1 :]
        legacy, new = _LEGACY.match(inside), _NEW.match(inside)
        match = legacy or new
        if match is None:
            return None
        if legacy is None:
            layout = "new"
        units[f"{match[1]}/{match[2]}-{match[3]}"] = match[4]
    try:
        rustc, _, toolchain = notes.read_text().splitlines()[-1].partition("\t")
    except (OSError, IndexError, ValueError):
        return None
    if not units:
        return None
    return Asked(layout, tuple(units.items()), rustc, toolchain or None)
