"""Identity: rustc sees a worktree where its donor's rustc saw it, and nobody else notices.

First with a compiler that does what a test says, then with the real ones.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import pytest
from tests.native.conftest import HASH, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SHOW = 'pwd; for word; do printf "<%s>" "$word"; done'


def _git(*arguments: str | Path, where: Path) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=where, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def _namespaces(missing: Callable[[str], NoReturn]) -> None:
    """PROBE: the act itself, by another program."""
    words = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--mount"]
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"no mount namespaces: {done.stderr.strip()}")


class Worktree(NamedTuple):
    """A unit in a linked worktree, whose rustc shall see it at its main checkout's path."""

    unit: Unit
    main: Path
    log: Path

    @property
    def root(self) -> Path:
        return self.unit.root

    @property
    def file(self) -> Path:
        return Path(
            _git("rev-parse", "--absolute-git-dir", where=self.root), "cargo-cow/identity.json"
        )

    def wish(self, **more: object) -> None:
        wish = {"format": 1, "checkout": str(self.root), "identity": str(self.main)} | more
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(wish))

    def arguments(self, *more: str, root: Path | None = None) -> list[str]:
        target = (root or self.root) / "target" / "debug"
        words = self.unit.arguments()
        words[-1] = str(target / "deps")
        return [*words, "-C", f"incremental={target}/incremental", *more]

    def call(
        self,
        does: str = "",
        arguments: list[str] | None = None,
        /,
        **environment: str,
    ) -> subprocess.CompletedProcess[bytes]:
        return self.unit.call(
            does,
            self.arguments() if arguments is None else arguments,
            self.environment(does) | environment,
        )

    def environment(self, does: str) -> dict[str, str]:
        return self.unit.environment(does) | {"CARGO_COW_LOG": str(self.log)}

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def went_in(self, done: subprocess.CompletedProcess[bytes]) -> bool:
        """Whether a compiler that did ``pwd`` first was inside."""
        where = done.stdout.decode().splitlines()[0]
        assert where in {str(self.main), str(self.root)}
        inside = where == str(self.main)
        assert inside == ("identity: ran" in self.said()), self.said()
        return inside


def _worktree(shim: Path, base: Path, place: str = "work space") -> Worktree:
    main = base / "main one"
    main.mkdir()
    _git("init", "-q", "-b", "main", where=main)
    _git("commit", "-q", "--allow-empty", "-m", "first", where=main)
    root = base / place
    _git("worktree", "add", "-q", "--detach", root, where=main)
    unit = Unit(shim, root)
    unit.fingerprint.mkdir(parents=True)
    unit.deps.mkdir()
    (root / "src").mkdir()
    for name in ("lib.rs", "b.rs"):
        (root / "src" / name).write_text(f"// {name}\n")
    unit.compiler.write_text('#!/bin/sh\neval "$FAKE"\n')
    unit.compiler.chmod(0o755)
    unit.stamp.touch()
    time.sleep(0.02)
    made = Worktree(unit, main, base / "log")
    made.wish()
    return made


@pytest.fixture
def worktree(native_program: Path, tmp_path: Path) -> Worktree:
    return _worktree(native_program, tmp_path)


@pytest.fixture
def nested(native_program: Path, tmp_path: Path) -> Worktree:
    """A worktree inside of its main checkout, which is its identity."""
    return _worktree(native_program, tmp_path, "main one/.trees/work space")


# --- what the compiler sees -------------------------------------------------------------------


def test_directory_and_arguments_are_those_of_the_identity(worktree: Worktree) -> None:
    more = ["--extern", f"priv:a={worktree.root}/target/liba.rlib", f"-Clink-arg={worktree.root}/x"]
    done = worktree.call(SHOW, worktree.arguments(*more))
    expected = worktree.arguments(
        "--extern", f"priv:a={worktree.main}/target/liba.rlib", more[-1], root=worktree.main
    )
    shown = "".join(f"<{word}>" for word in expected)
    assert done.stdout.decode() == f"{worktree.main}\n{shown}", worktree.said()
    assert worktree.went_in(done)


def test_everything_else_is_as_it_was(worktree: Worktree) -> None:
    does = 'env; echo; cat; cat src/lib.rs; cat "$CARGO_MANIFEST_DIR/src/b.rs"; id -u'
    done = subprocess.run(
        [worktree.unit.shim, worktree.unit.compiler, *worktree.arguments()],
        cwd=worktree.root,
        env=worktree.environment(does),
        input=b"given\n",
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode().splitlines()
    assert lines[-4:] == ["given", "// lib.rs", "// b.rs", str(os.geteuid())]
    given = {f"{name}={value}" for name, value in worktree.environment(does).items()}
    assert given <= set(lines)
    assert "identity: ran" in worktree.said()


def test_what_it_writes_lies_in_the_worktree_and_nothing_in_the_main_checkout(
    worktree: Worktree,
) -> None:
    (worktree.main / "kept").touch()
    worktree.call('mkdir target/debug/incremental; echo x > "$CARGO_MANIFEST_DIR/here"; echo > y')
    assert (worktree.root / "target/debug/incremental").is_dir()
    assert (worktree.root / "here").exists()
    assert (worktree.root / "y").exists()
    assert sorted(path.name for path in worktree.main.iterdir()) == [".git", "kept"]
    assert str(worktree.main) not in Path("/proc/self/mountinfo").read_text()


def test_git_finds_its_repository(worktree: Worktree) -> None:
    head = _git("rev-parse", "HEAD", where=worktree.root)
    does = (
        'pwd; git rev-parse HEAD; (cd "$CARGO_MANIFEST_DIR" && git rev-parse HEAD);'
        " here=$(pwd | sed 's/ /\\\\ /g');"
        " git=$(git rev-parse --absolute-git-dir | sed 's/ /\\\\ /g');"
        f" printf '%s\\n' \"$here/x.d: $git/HEAD\" > target/debug/deps/app-{HASH}.d"
    )
    done = worktree.call(does)
    assert done.stdout.decode().split("\n")[1:3] == [head, head]
    assert worktree.went_in(done)
    git_dir = _git("rev-parse", "--absolute-git-dir", where=worktree.root)
    escaped = git_dir.replace(" ", "\\ ")
    assert f": {escaped}/HEAD\n" in worktree.unit.dep_info.read_text()


def test_an_argument_file_is_read_and_written_anew(worktree: Worktree, tmp_path: Path) -> None:
    listed = tmp_path / "arguments"
    listed.write_text("\n".join(worktree.arguments()))
    done = worktree.call('pwd; cat "${1#@}"', [f"@{listed}"])
    assert worktree.went_in(done)
    words = done.stdout.decode().splitlines()[1:]
    assert words == worktree.arguments(root=worktree.main)


def test_a_build_directory_elsewhere(worktree: Worktree, tmp_path: Path) -> None:
    real, seen = tmp_path / "out b", tmp_path / "out a"
    (real / "debug/deps").mkdir(parents=True)
    seen.mkdir()
    worktree.wish(build_dir=str(real), build_dir_identity=str(seen))
    words = ["--crate-name=app", f"--out-dir={real}/debug/deps", f"-Cincremental={real}/debug/i"]
    done = worktree.call(f'{SHOW}; echo > "${{2#*=}}/x"', words)
    assert worktree.went_in(done)
    assert f"<--out-dir={seen}/debug/deps><-Cincremental={seen}/debug/i>" in done.stdout.decode()
    assert (real / "debug/deps/x").exists()
    assert not list(seen.iterdir())


def test_a_package_that_lies_elsewhere(worktree: Worktree, tmp_path: Path) -> None:
    elsewhere = tmp_path / "package"
    elsewhere.mkdir()
    done = subprocess.run(
        [worktree.unit.shim, worktree.unit.compiler, *worktree.arguments(f"{elsewhere}/lib.rs")],
        cwd=elsewhere,
        env=worktree.environment(SHOW),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{elsewhere}\n")
    assert f"<{worktree.main}/target/debug/deps>" in done.stdout


def test_a_worktree_inside_of_its_identity(nested: Worktree) -> None:
    (nested.root / "linked").symlink_to("src/b.rs")
    (nested.root / ".trees").mkdir()
    (nested.root / ".trees/kept").write_text("kept\n")
    (nested.main / "hidden").touch()
    head = _git("rev-parse", "HEAD", where=nested.root)
    does = (
        'pwd; cat src/lib.rs linked .trees/kept; ls -A; cat "$CARGO_MANIFEST_DIR/src/b.rs";'
        ' git rev-parse HEAD; echo > "$CARGO_MANIFEST_DIR/made"; mkdir target/debug/incremental;'
        f" printf '%s\\n' 'x.d: src/lib.rs {str(nested.root).replace(' ', chr(92) + ' ')}/src/b.rs'"
        f" > target/debug/deps/app-{HASH}.d"
    )
    done = nested.call(does, PATH=f"{os.environ['PATH']}:{nested.root}/bin")
    assert nested.went_in(done)
    lines = done.stdout.decode().splitlines()[1:]
    names = [".git", ".trees", "linked", "rustc", "src", "target"]
    assert lines == ["// lib.rs", "// b.rs", "kept", *names, "// b.rs", head]
    assert (nested.root / "made").exists()
    assert (nested.root / "target/debug/incremental").is_dir()
    assert sorted(path.name for path in nested.main.iterdir()) == [".git", ".trees", "hidden"]
    observed = json.loads(nested.unit.observed.read_text())
    assert [name for name, _, _ in observed["files"]] == [
        "src/lib.rs",
        f"{nested.root}/src/b.rs",
    ]


def test_from_inside_of_its_identity_a_message_comes_back(nested: Worktree) -> None:
    done = nested.call('pwd; printf "$PWD/x $CARGO_MANIFEST_DIR/y $PWD/.trees/z" >&2')
    assert nested.went_in(done)
    expected = f"{nested.root}/x {nested.root}/y {nested.root}/.trees/z"
    assert done.stderr.decode() == expected


@pytest.mark.parametrize("word", ["(os error 30)", "ld: x.map: Read-only file system"])
def test_what_is_made_beside_the_sources_is_made(nested: Worktree, word: str) -> None:
    """The frame is read-only; who has to write there compiles at the real path."""
    does = f'pwd; touch made || {{ echo "{word}" >&2; exit 1; }}'
    done = nested.call(does)
    assert done.returncode == 0
    assert (nested.root / "made").exists()
    assert "given up: it wrote into its working directory" in nested.said()


def test_inside_of_its_identity_what_is_beside_it_is_hidden(nested: Worktree) -> None:
    for name, value in (
        ("PATH", f"{os.environ['PATH']}:{nested.main}/bin"),
        ("ANYTHING", f"{nested.main}/.trees/other"),
    ):
        assert f"{name} names" in _unchanged(nested, **{name: value})
        nested.log.unlink()
    (nested.root / "out").symlink_to("../other")
    assert "leads into the identity" in _unchanged(nested)


def test_a_checkout_that_is_in_its_own_way(nested: Worktree) -> None:
    (nested.root / ".trees/work space").mkdir(parents=True)
    assert "identity: not used" in _unchanged(nested)


# --- what others see --------------------------------------------------------------------------


def _artifact(root: Path) -> bytes:
    line = {"$message_type": "artifact", "artifact": f"{root}/target/x.rmeta", "emit": "metadata"}
    return json.dumps(line).encode() + b"\n"


def test_output_is_mapped_back_line_by_line(worktree: Worktree) -> None:
    artifact = _artifact(Path("HERE")).decode().strip()
    does = (
        f"echo '{artifact}' | sed \"s,HERE,$PWD,\" >&2; echo ready; read answer;"
        ' printf "note: $PWD/x and $PWD-old/x" >&2'
    )
    with subprocess.Popen(
        [worktree.unit.shim, worktree.unit.compiler, *worktree.arguments()],
        cwd=worktree.root,
        env=worktree.environment(does),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # It still runs, and waits for us: so nothing was kept back.
        assert process.stdout.readline() == b"ready\n"
        assert process.stderr.readline() == _artifact(worktree.root)
        process.stdin.write(b"go\n")
        process.stdin.close()
        expected = f"note: {worktree.root}/x and {worktree.main}-old/x"
        assert process.stderr.read() == expected.encode()


def test_the_dep_info_and_the_observation_are_of_the_real_place(worktree: Worktree) -> None:
    does = (
        "here=$(pwd | sed 's/ /\\\\ /g');"
        " printf '%s\\n' \"$here/x.d: src/lib.rs $here/src/b.rs\" '' \"# env-dep:A=$PWD\""
        f" > target/debug/deps/app-{HASH}.d"
    )
    assert worktree.call(does).returncode == 0
    root = str(worktree.root).replace(" ", "\\ ")
    assert worktree.unit.dep_info.read_text() == (
        f"{root}/x.d: src/lib.rs {root}/src/b.rs\n\n# env-dep:A={worktree.main}\n"
    )
    observed = json.loads(worktree.unit.observed.read_text())
    assert observed["cwd"] == str(worktree.root)
    assert [name for name, _, _ in observed["files"]] == [
        "src/lib.rs",
        f"{worktree.root}/src/b.rs",
    ]
    assert "identity: ran" in worktree.said()
    assert not list(worktree.unit.deps.glob("*.cow-*"))


@pytest.mark.parametrize("code", [0, 1, 101])
def test_the_status_is_the_compilers(worktree: Worktree, code: int) -> None:
    assert worktree.call(f"exit {code}").returncode == code
    assert worktree.said().count("identity: ran") == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_it_dies_as_the_compiler_died(worktree: Worktree, number: int) -> None:
    done = worktree.call(f"kill -{number} $$; sleep 5")
    assert done.returncode == -number
    assert worktree.said().count("identity: ran") == 1


def test_a_signal_reaches_the_compiler(worktree: Worktree) -> None:
    does = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done"
    with subprocess.Popen(
        [worktree.unit.shim, worktree.unit.compiler, *worktree.arguments()],
        cwd=worktree.root,
        env=worktree.environment(does),
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(60) == 9


# --- where it keeps away ----------------------------------------------------------------------


def _unchanged(worktree: Worktree, arguments: list[str] | None = None, /, **variables: str) -> str:
    words = worktree.arguments() if arguments is None else arguments
    done = worktree.call(SHOW, words, **variables)
    shown = "".join(f"<{word}>" for word in words)
    assert done.stdout.decode() == f"{worktree.root}\n{shown}"
    assert not worktree.went_in(done)
    return worktree.said()


def test_switched_off(worktree: Worktree) -> None:
    assert "identity" not in _unchanged(worktree, CARGO_COW_IDENTITY="off")


def test_without_a_wish(worktree: Worktree) -> None:
    worktree.file.unlink()
    assert "identity" not in _unchanged(worktree)


def test_a_compile_without_incremental_state(worktree: Worktree) -> None:
    assert "identity" not in _unchanged(worktree, worktree.unit.arguments())


@pytest.mark.parametrize(
    "more",
    [
        {"format": 2},
        {"checkout": "/elsewhere"},
        {"identity": "/nowhere/at all"},
        {"identity": "relative"},
        {"build_dir": "/nowhere", "build_dir_identity": "/nor here"},
    ],
)
def test_a_wish_that_cannot_be_granted(worktree: Worktree, more: dict[str, object]) -> None:
    worktree.wish(**more)
    assert "identity: not used" in _unchanged(worktree)


def test_a_file_that_is_none(worktree: Worktree) -> None:
    worktree.file.write_text("{")
    assert "identity: not used" in _unchanged(worktree)


def test_its_own_path_and_symlinks_and_what_lies_in_each_other(
    worktree: Worktree, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(worktree.main)
    inside = worktree.root / "inside"
    inside.mkdir()
    for identity in (worktree.root, link, inside):
        worktree.wish(identity=str(identity))
        assert "identity: not used" in _unchanged(worktree)
        worktree.log.unlink()


@pytest.mark.parametrize(
    "more",
    [
        ["-C", "instrument-coverage"],
        ["-Csplit-debuginfo=unpacked"],
        ["--print=link-args"],
        ["--emit=asm=-"],
        ["{root}/src/lib.rs"],
        ["--remap-path-prefix={root}=/x"],
        ["-L", "native={main}/lib"],
        ["-Clink-arg=-L{main}/lib"],
        ["-C", "linker={main}/ld"],
    ],
)
def test_arguments_whose_meaning_would_change(worktree: Worktree, more: list[str]) -> None:
    words = [word.format(root=worktree.root, main=worktree.main) for word in more]
    assert "identity: not used" in _unchanged(worktree, worktree.arguments(*words))


def test_variables_that_name_what_would_be_hidden(worktree: Worktree) -> None:
    path = f"{os.environ['PATH']}:{worktree.main}/bin"
    for name, value in (
        ("CARGO_HOME", f"{worktree.main}/.cargo"),
        ("TMPDIR", f"{worktree.main}"),
        ("PATH", path),
        ("ANYTHING", f"x;y={worktree.main}/z"),
        ("GIT_DIR", f"{worktree.main}/.git/worktrees/x"),
    ):
        assert f"{name} names" in _unchanged(worktree, **{name: value})
        worktree.log.unlink()
    for name, value in (("OLDPWD", str(worktree.main)), ("OTHER", f"{worktree.main}-old")):
        assert worktree.went_in(worktree.call("pwd", **{name: value}))
        worktree.log.unlink()


def test_a_home_that_is_hidden_behind_a_symlink(worktree: Worktree, tmp_path: Path) -> None:
    (worktree.main / "home").mkdir()
    (tmp_path / "home").symlink_to(worktree.main / "home")
    said = _unchanged(worktree, CARGO_HOME=str(tmp_path / "home"))
    assert "would be something else inside" in said


@pytest.mark.parametrize("place", ["", "src"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_symlink_into_the_main_checkout(worktree: Worktree, place: str, relative: bool) -> None:
    (worktree.main / "data").write_text("of main")
    link = worktree.root / place / "data"
    target = worktree.main / "data"
    link.symlink_to(os.path.relpath(target, link.parent) if relative else target)
    said = _unchanged(worktree, CARGO_MANIFEST_DIR=str(worktree.root / place))
    assert "leads into the identity" in said


def test_a_target_that_is_not_of_the_checkout(worktree: Worktree, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (worktree.root / "target").rename(tmp_path / "target/real")
    (worktree.root / "target").symlink_to(tmp_path / "target/real")
    # A symlink that leads elsewhere is the same inside.
    assert worktree.went_in(worktree.call("pwd"))


def test_behind_a_wrapper_that_may_work_elsewhere(worktree: Worktree, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text('#!/bin/sh\nexec "$@"\n')
    wrapper.chmod(0o755)
    assert "may work elsewhere" in _unchanged(worktree, CARGO_COW_CHAIN=str(wrapper))
    done = worktree.unit.call(
        "pwd",
        worktree.arguments(),
        worktree.environment("pwd"),
        compiler=[wrapper, worktree.unit.compiler],
    )
    assert not worktree.went_in(done)


def test_a_proxy_that_chooses_by_directory(worktree: Worktree) -> None:
    (worktree.unit.compiler.parent / "rustup").touch()
    assert "would choose by directory" in _unchanged(worktree)
    worktree.log.unlink()
    assert worktree.went_in(worktree.call("pwd", RUSTUP_TOOLCHAIN="stable"))


def test_a_compiler_that_cannot_be_run(worktree: Worktree) -> None:
    worktree.unit.compiler.unlink()
    done = worktree.call()
    assert done.returncode == 127
    assert b"cannot run" in done.stderr


def test_dep_info_that_cannot_be_restored_means_a_compile_at_the_real_path(
    worktree: Worktree,
) -> None:
    # Not UTF-8, so not ours to rewrite; the second run is the one that counts.
    does = f"pwd; printf '%b' 'a\\0377: x\\n' > target/debug/deps/app-{HASH}.d"
    done = worktree.call(does)
    assert done.stdout.decode().splitlines() == [str(worktree.main), str(worktree.root)]


# --- without privileges -----------------------------------------------------------------------


def _open(
    shim: Path, unprivileged: Callable[..., Any], place: str = "work space"
) -> tuple[Worktree, Path]:
    """A worktree of nobody's, and where it lies."""
    import tempfile

    base = Path(tempfile.mkdtemp(prefix="cargo-cow-identity-")).resolve()
    base.chmod(0o777)
    own = base / "shim"
    shutil.copy(shim, own)
    own.chmod(0o755)
    return unprivileged(functools.partial(_worktree, own, base, place)), base


def _called(worktree: Worktree, does: str) -> tuple[int, bytes, bytes]:
    done = worktree.call(does)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("place", ["work space", "main one/.trees/work space"])
def test_without_root(native_program: Path, unprivileged: Callable[..., Any], place: str) -> None:
    worktree, base = _open(native_program, unprivileged, place)
    try:
        does = 'pwd; id -u; echo > "$CARGO_MANIFEST_DIR/made"; git rev-parse HEAD'
        code, out, _ = unprivileged(_called, worktree, does)
        user = unprivileged(os.geteuid)
        where, seen, head = out.decode().splitlines()
        assert (code, where, int(seen)) == (0, str(worktree.main), user), worktree.said()
        assert len(head) == 40
        assert (worktree.root / "made").stat().st_uid == user
        # No privileges are left in the compiler.
        _, out, _ = unprivileged(_called, worktree, "grep CapEff /proc/self/status")
        if user != 0:
            assert int(out.split()[1], 16) == 0
    finally:
        shutil.rmtree(base)


def test_where_namespaces_are_refused(
    native_program: Path, unprivileged: Callable[..., Any], missing: Callable[[str], NoReturn]
) -> None:
    if os.geteuid() != 0 or not (setpriv := shutil.which("setpriv")):
        missing("needs root and setpriv")
    worktree, base = _open(native_program, unprivileged)
    try:
        # Root without its privileges, as in a container.
        done = subprocess.run(
            [
                setpriv,
                "--bounding-set=-all",
                "--inh-caps=-all",
                worktree.unit.shim,
                worktree.unit.compiler,
                *worktree.arguments(),
            ],
            cwd=worktree.root,
            env=worktree.environment("pwd"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, f"{worktree.root}\n"), done.stderr
    finally:
        shutil.rmtree(base)


# --- the real compiler ------------------------------------------------------------------------

FILES = {
    ".gitignore": "/target\n",
    "Cargo.toml": '[workspace]\nmembers = ["util", "mac", "app"]\nresolver = "2"\n',
    "util/Cargo.toml": '[package]\nname = "util"\nversion = "0.1.0"\nedition = "2021"\n',
    "util/src/lib.rs": (
        "mod many;\n"
        "#[track_caller]\npub fn place() -> String { std::panic::Location::caller().to_string() }\n"
        "pub fn generic<T: Copy>(value: T) -> (T, String) { (value, place()) }\n"
        "pub fn file() -> &'static str { file!() }\n"
        "pub fn old(_: u8) -> u32 { many::f0(1) }\n"
    ),
    "util/src/many.rs": "".join(
        f"pub fn f{n}(x: u32) -> u32 {{\n"
        f"    if x > {n} {{ x * {n + 3} }} else {{ x + f{n + 1}(x) }}\n}}\n"
        for n in range(200)
    )
    + "pub fn f200(x: u32) -> u32 { x }\n",
    "mac/Cargo.toml": (
        '[package]\nname = "mac"\nversion = "0.1.0"\nedition = "2021"\n[lib]\nproc-macro = true\n'
    ),
    "mac/src/lib.rs": (
        "extern crate proc_macro;\nuse proc_macro::TokenStream;\n"
        "#[proc_macro]\npub fn data(_: TokenStream) -> TokenStream {\n"
        '    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();\n'
        '    let text = std::fs::read_to_string(format!("{root}/data.txt")).unwrap();\n'
        '    format!("{:?}", text).parse().unwrap()\n}\n'
    ),
    "app/Cargo.toml": (
        '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n'
        '[dependencies]\nutil = { path = "../util" }\nmac = { path = "../mac" }\n'
    ),
    "app/data.txt": "data",
    "app/build.rs": (
        'fn main() {\n    println!("cargo::rerun-if-changed=build.rs");\n'
        '    let out = std::env::var("OUT_DIR").unwrap();\n'
        '    std::fs::write(format!("{out}/gen.rs"), "pub fn made() -> &\'static str { file!() }")'
        ".unwrap();\n}\n"
    ),
    "app/src/main.rs": (
        'include!(concat!(env!("OUT_DIR"), "/gen.rs"));\n'
        "fn main() {\n"
        '    println!("{}", env!("CARGO_MANIFEST_DIR"));\n'
        '    println!("{}", env!("OUT_DIR"));\n'
        '    println!("{}", made());\n'
        '    println!("{} {}", file!(), util::file());\n'
        '    println!("{:?}", util::generic(1u8));\n'
        '    println!("{}", mac::data!());\n'
        '    println!("{}", util::old(1));\n'
        "}\n"
    ),
}


class Workspace(NamedTuple):
    """A built main checkout, and a worktree with a copy of its target."""

    main: Path
    root: Path
    shim: Path
    log: Path

    def cargo(
        self,
        *arguments: str,
        where: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ) | {
            "RUSTC_WRAPPER": str(self.shim),
            "CARGO_COW_SEEDING": "1",
            "CARGO_COW_LOG": str(self.log),
            "CARGO_NET_OFFLINE": "true",
            "CARGO_INCREMENTAL": "1",
            **(variables or {}),
        }
        return subprocess.run(
            ["cargo", *arguments],
            cwd=where or self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def build(self, *arguments: str, **variables: str) -> str:
        done = self.cargo("build", *arguments, variables=variables)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def program(self) -> list[str]:
        path = self.root / "target/debug/app"
        return subprocess.run([path], check=True, capture_output=True, text=True).stdout.split("\n")

    def went_in(self) -> int:
        return self.log.read_text().count("identity: ran") if self.log.exists() else 0

    def objects(self, crate: str) -> set[int]:
        """The inodes of the objects in the newest session of the crate's incremental state."""
        sessions = self.root.glob(f"target/debug/incremental/{crate}-*/s-*/")
        newest = max(sessions, key=lambda path: path.stat().st_mtime_ns)
        return {path.stat().st_ino for path in newest.glob("*.o")}

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture
def workspace(native_program: Path, tmp_path: Path) -> Workspace:
    main, root = tmp_path / "main", tmp_path / "feature"
    for name, text in FILES.items():
        (main / name).parent.mkdir(parents=True, exist_ok=True)
        (main / name).write_text(text)
    made = Workspace(main, root, native_program, tmp_path / "log")
    _git("init", "-q", "-b", "main", where=main)
    _git("add", "-A", where=main)
    _git("commit", "-q", "-m", "first", where=main)
    done = made.cargo("build", where=main)
    assert done.returncode == 0, done.stderr
    _git("worktree", "add", "-q", "--detach", root, where=main)
    subprocess.run(["cp", "-a", "--reflink=auto", main / "target", root / "target"], check=True)
    wish = {"format": 1, "checkout": str(root), "identity": str(main)}
    git_dir = Path(_git("rev-parse", "--absolute-git-dir", where=root))
    (git_dir / "cargo-cow").mkdir(exist_ok=True)
    (git_dir / "cargo-cow/identity.json").write_text(json.dumps(wish))
    return made


@pytest.mark.parametrize("switch", ["on", "off"])
def test_incremental_state_is_used(workspace: Workspace, switch: str) -> None:
    """Objects that rustc reuses are hard links of the last session's; without identity it makes
    every one anew, which proves that this test can fail."""
    before = workspace.objects("util")
    assert len(before) > 1
    workspace.edit("util/src/lib.rs", "many::f0(1)", "many::f0(2)")
    workspace.build(CARGO_COW_IDENTITY=switch)
    kept = before & workspace.objects("util")
    if switch == "on":
        assert workspace.went_in() == 4  # app's script, mac, util, app
        assert len(kept) >= len(before) - 2
    else:
        assert workspace.went_in() == 0
        assert not kept


def test_results_are_those_of_the_worktree(workspace: Workspace) -> None:
    workspace.build()
    out_dir = next(workspace.root.glob("target/debug/build/app-*/out"))
    assert workspace.program()[:7] == [
        str(workspace.root / "app"),
        str(out_dir),
        str(out_dir / "gen.rs"),
        "app/src/main.rs util/src/lib.rs",
        '(1, "util/src/lib.rs:4:60")',
        "data",
        "3",
    ]
    main = os.fsencode(workspace.main)
    assert workspace.went_in() == 4
    assert "held back" not in workspace.log.read_text()
    memory = workspace.root / "target/debug/incremental/.cow-macros"
    assert "libmac-" in memory.read_text()
    for path in workspace.root.glob("target/debug/**/*.d"):
        assert main not in path.read_bytes(), path
    for path in workspace.root.glob("target/debug/.fingerprint/*/*"):
        assert main not in path.read_bytes(), path


def test_without_debug_information_outputs_do_not_name_the_identity(workspace: Workspace) -> None:
    workspace.build(CARGO_PROFILE_DEV_DEBUG="0", CARGO_PROFILE_DEV_STRIP="symbols")
    assert workspace.went_in() == 4
    assert os.fsencode(workspace.main) not in (workspace.root / "target/debug/app").read_bytes()
    assert workspace.program()[0] == str(workspace.root / "app")


def test_edits_in_the_worktree_are_noticed_and_others_are_not(workspace: Workspace) -> None:
    workspace.build()
    assert "Compiling" not in workspace.build()
    (workspace.main / "util/src/many.rs").touch()
    (workspace.main / "util/src/lib.rs").write_text("compile_error!();")
    assert "Compiling" not in workspace.build()
    for name in ("util/src/many.rs", "app/data.txt"):
        (workspace.root / name).touch()
    assert workspace.build().count("Compiling") == 2
    workspace.edit("util/src/many.rs", "{ x * 3 }", "{ x * 7 }")
    workspace.build()
    assert workspace.program()[6] == "7"
    assert "Compiling" not in workspace.build()


def test_diagnostics_point_into_the_worktree(workspace: Workspace) -> None:
    workspace.edit("app/src/main.rs", "util::old(1)", 'util::old("x")')
    done = workspace.cargo("build", "--message-format=json")
    assert done.returncode == 101
    assert str(workspace.main) not in done.stdout + done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    errors = [
        message["message"]
        for message in messages
        if message["reason"] == "compiler-message" and message["message"]["level"] == "error"
    ]
    spans = [span for error in errors for span in error["spans"]]
    assert {span["file_name"] for span in spans} == {"app/src/main.rs"}
    assert workspace.went_in() >= 3


def test_a_missing_file_is_named_where_it_is_missing(workspace: Workspace) -> None:
    workspace.edit(
        "app/src/main.rs", "include!(", 'const _: &str = include_str!("../none");\ninclude!('
    )
    done = workspace.cargo("build")
    assert done.returncode == 101
    assert "app/src/../none" in done.stderr
    assert str(workspace.main) not in done.stderr


def test_clippy_and_fix(workspace: Workspace) -> None:
    workspace.edit("app/src/main.rs", "util::old(1)", "{ let mut x = 1; util::old(x) }")
    done = workspace.cargo("fix", "--allow-dirty", "--bin", "app")
    assert done.returncode == 0, done.stderr
    assert "let x = 1;" in (workspace.root / "app/src/main.rs").read_text()
    assert "let mut x" not in (workspace.root / "app/src/main.rs").read_text()
    assert "let mut" not in (workspace.main / "app/src/main.rs").read_text()
    done = workspace.cargo("clippy")
    assert done.returncode == 0, done.stderr
    assert str(workspace.main) not in done.stderr


# --- macros that know where they are ----------------------------------------------------------

PURE_MACRO = FILES["mac/src/lib.rs"]
PLACE_MACRO = PURE_MACRO.replace(
    'let text = std::fs::read_to_string(format!("{root}/data.txt")).unwrap();',
    "let _ = root; let text = std::env::current_dir().unwrap().display().to_string();",
)
# Asks, and does not tell.
ASKING_MACRO = PURE_MACRO.replace(
    "let text", "if !std::env::current_dir().unwrap().is_absolute() { panic!() }\n    let text"
)
SPAN_MACRO = PURE_MACRO.replace(
    'let text = std::fs::read_to_string(format!("{root}/data.txt")).unwrap();',
    "let _ = root; let span = proc_macro::Span::call_site();"
    ' let text = format!("{} {:?}", span.file(), span.local_file());',
)


GETCWD = (
    'extern "C" { fn getcwd(at: *mut u8, size: usize) -> *mut u8; }\n'
    "unsafe fn asked() -> String { let mut at = [0u8; 4096];"
    " getcwd(at.as_mut_ptr(), 4096); String::from_utf8_lossy(&at).into() }\n"
)
KNOWING = {
    "current_dir": "std::env::current_dir().unwrap().display().to_string()",
    "pointer": (
        "{ let ask: fn() -> std::io::Result<std::path::PathBuf> = std::env::current_dir;"
        " std::hint::black_box(ask)().unwrap().display().to_string() }"
    ),
    "canonicalize": 'std::fs::canonicalize(".").unwrap().display().to_string()',
    "canonicalized": 'std::path::Path::new(".").canonicalize().unwrap().display().to_string()',
    "absolute": 'std::path::absolute("x").unwrap().display().to_string()',
    "read_link": 'std::fs::read_link("/proc/self/cwd").unwrap().display().to_string()',
    "command": 'format!("{:?}", std::process::Command::new("pwd").output())',
    "getcwd": "unsafe { asked() }",
}
UNKNOWING = {
    "constant": '"x".to_string()',
    "file": 'std::fs::read_to_string("/dev/null").unwrap()',
    "listing": 'format!("{}", std::fs::read_dir(".").unwrap().count())',
    "variable": 'std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default()',
    "panic": 'if input.is_empty() { panic!("{input}") } else { String::new() }',
    "thread": "std::thread::spawn(|| String::new()).join().unwrap()",
}


@pytest.mark.parametrize(
    ("how", "level"),
    [(how, "0") for how in (*KNOWING, *UNKNOWING)]
    + [(how, "3") for how in ("current_dir", "pointer", "file")],
)
def test_which_macros_may_know_their_directory(worktree: Worktree, how: str, level: str) -> None:
    source = worktree.unit.root.parent / "mac.rs"
    expression = (KNOWING | UNKNOWING)[how]
    source.write_text(
        "extern crate proc_macro;\nuse proc_macro::TokenStream;\n"
        f"{GETCWD if how == 'getcwd' else ''}"
        "#[proc_macro]\npub fn text(input: TokenStream) -> TokenStream {\n"
        "    let input = input.to_string();\n    let _ = &input;\n"
        f'    let text: String = {expression};\n    format!("{{text:?}}").parse().unwrap()\n}}\n'
    )
    words = ["--crate-type", "proc-macro", "--crate-name", "mac", "--edition=2021"]
    words += ["-C", "prefer-dynamic", "-C", f"opt-level={level}", "-C", "strip=debuginfo"]
    out = worktree.unit.deps / "libmac-0.so"
    subprocess.run(["rustc", *words, source, "-o", out], check=True, capture_output=True)
    reached = worktree.arguments("-L", f"dependency={worktree.unit.deps}")
    for _ in range(2):  # the second time from memory
        done = worktree.call("pwd", reached)
        assert worktree.went_in(done)
        assert ("held back" in worktree.said()) == (how in KNOWING)
        worktree.log.unlink()
    memory = worktree.root / "target/debug/incremental/.cow-macros"
    assert not memory.exists() or memory.read_text().count("\n") == 1
    # Without a table of symbols nothing is known.
    subprocess.run(["strip", out], check=True)
    worktree.call("pwd", reached)
    assert "held back" in worktree.said()


def test_a_macro_that_tells_its_directory_tells_the_real_one(workspace: Workspace) -> None:
    write = (workspace.root / "mac/src/lib.rs").write_text
    write(PLACE_MACRO)
    workspace.build()
    # Cargo compiles members in the workspace root.
    assert workspace.program()[5] == str(workspace.root)
    assert "tells where" in workspace.log.read_text()
    # Its user alone is compiled at the real path, and not tried twice.
    workspace.log.unlink()
    workspace.edit("app/src/main.rs", "util::old(1)", "util::old(2)")
    workspace.edit("util/src/lib.rs", "many::f0(1)", "many::f0(2)")
    workspace.build()
    assert workspace.went_in() == 1
    assert "not used" in workspace.log.read_text()
    assert workspace.program()[5:7] == [str(workspace.root), "6"]
    # Another macro under that name is another matter.
    write(PURE_MACRO)
    workspace.log.unlink()
    workspace.build()
    assert workspace.went_in() == 2
    assert workspace.program()[5] == "data"


def test_a_macro_that_asks_and_does_not_tell_changes_nothing(workspace: Workspace) -> None:
    (workspace.root / "mac/src/lib.rs").write_text(ASKING_MACRO)
    workspace.edit("app/src/main.rs", "fn main() {", "fn main() {\n    let unused = 1;")
    said = workspace.build()
    assert said.count("unused variable") == 1
    assert workspace.went_in() == 4
    assert "held back" in workspace.log.read_text()
    assert "given up" not in workspace.log.read_text()
    assert workspace.program()[5] == "data"
    # Held back, a message is still there when the build fails.
    workspace.edit("app/src/main.rs", "let unused = 1;", "let unused: u8 = true;")
    done = workspace.cargo("build")
    assert done.returncode == 101
    assert done.stderr.count("mismatched types") == 1


def test_spans_do_not_tell(workspace: Workspace) -> None:
    (workspace.root / "mac/src/lib.rs").write_text(SPAN_MACRO)
    workspace.build()
    assert str(workspace.main) not in "\n".join(workspace.program())
    assert workspace.program()[5].startswith("app/src/main.rs")
    assert workspace.went_in() == 4
