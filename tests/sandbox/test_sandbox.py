"""Sandbox mode with the real Cargo and git: one path for all checkouts, and nothing else changes.

The yardstick is a clean build at the path where the compiler works: outside that is the checkout,
inside the fixed path.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support.projects import SOURCE, cow, git, repository, settle, write

import cargo_cow.cargo.workspace as workspaces
from cargo_cow import native, sandbox

_BAKER = """
pub const DIRECTORY: &str = env!("CARGO_MANIFEST_DIR");
pub const OUT: &str = env!("OUT_DIR");
pub const SAID: &str = env!("SAID");
pub const VALUE: u32 = include!(concat!(env!("OUT_DIR"), "/value.rs"));
"""

_SCRIPT = """
fn main() {
    println!("cargo::rerun-if-changed=value.txt");
    println!("cargo::rustc-env=SAID={}", std::env::current_dir().unwrap().display());
    let value = std::fs::read_to_string("value.txt").unwrap();
    std::fs::write(format!("{}/value.rs", std::env::var("OUT_DIR").unwrap()), value).unwrap();
}
"""


def _manifest(name: str, more: str = "") -> str:
    return f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n{more}'


FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["app", "baker"]\nresolver = "2"\n'
    "[profile.dev]\ndebug = 0\n",
    "baker/Cargo.toml": _manifest("baker"),
    "baker/build.rs": _SCRIPT,
    "baker/value.txt": "1\n",
    "baker/src/lib.rs": _BAKER,
    "app/Cargo.toml": _manifest("app", '[dependencies]\nbaker = { path = "../baker" }\n'),
    "app/src/main.rs": 'fn main() { println!("{} {} {} {}", '
    "baker::DIRECTORY, baker::OUT, baker::SAID, baker::VALUE); }\n",
    "app/tests/it.rs": '#[test]\nfn it() { assert!(std::path::Path::new(env!("CARGO_BIN_EXE_app"))'
    ".exists()); }\n",
}
"""A library that bakes whatever can be baked, and a test that bakes its program's path."""

ALL = ("--workspace", "--all-targets")


@pytest.fixture(autouse=True)
def _namespaces(missing: Callable[[str], NoReturn]) -> None:
    """PROBE: the act itself, by another program."""
    words = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--mount"]
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"no mount namespaces: {done.stderr.strip()}")


@pytest.fixture(params=["own", "bubblewrap"])
def method(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: Callable[[str], NoReturn],
) -> str:
    """Each way to make the view; our own where no bubblewrap is on PATH."""
    if request.param == "bubblewrap":
        if shutil.which("bwrap") is None:
            missing("bubblewrap is not installed")
    else:
        _without_bubblewrap(tmp_path, monkeypatch)
    return str(request.param)


def _without_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH on which all programs are but bubblewrap."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for directory in reversed(os.get_exec_path()):
        for program in Path(directory).glob("*"):
            link = programs / program.name
            if program.name != "bwrap":
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own way, for tests of what does not depend on it."""
    _without_bubblewrap(tmp_path, monkeypatch)


@pytest.fixture
def main(btrfs: Path) -> Path:
    """The main checkout of the workspace, never built."""
    return repository(btrfs / "project", FILES)


def _worktree(main: Path, name: str) -> Path:
    root = main.parent / name
    git(main, "worktree", "add", "-q", str(root))
    settle()
    return root


def _fixed(root: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "cargo_cow", "enter", "--dry-run", "--format", "json"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        check=True,
        capture_output=True,
    )
    return Path(json.loads(done.stdout)["fixed_path"])


def _enter(root: Path, scratch: Path, *words: str, **extra: str) -> str:
    done = cow(root, scratch, "enter", "--", *words, **extra)
    assert done.status == 0, done.output
    return done.output


def _says(root: Path) -> str:
    """What the built program prints."""
    return subprocess.run(
        [root / "target/debug/app"], check=True, capture_output=True, text=True
    ).stdout


def _clean(root: Path, scratch: Path, *, at: Path | None = None) -> str:
    """What a program built clean at that path prints; the target is what it was afterwards."""
    aside = root / "target-aside"
    (root / "target").rename(aside)
    try:
        command = ["cargo", "build", "-q", "--workspace"]
        if at is not None:
            view = ["--room", str(at.parent), "--bind", str(root), str(at), "--directory", str(at)]
            command = [str(native.program()), "--enter", *view, "--", *command]
        subprocess.run(command, cwd=root, check=True, env={**os.environ, "PWD": str(at or root)})
        return _says(root)
    finally:
        shutil.rmtree(root / "target", ignore_errors=True)
        aside.rename(root / "target")


def test_a_worktree_whatever_is_baked(main: Path, method: str, tmp_path: Path) -> None:
    built = cow(main, tmp_path, "build", "--sandbox", *ALL, "-v")
    assert built.status == 0, built.output
    assert built.scripts == 1
    assert len(built.rustc) > 3
    there = _worktree(main, "there")
    built = cow(there, tmp_path, "build", "--sandbox", *ALL, "-v")
    assert (built.rustc, built.scripts) == ([], 0), built.output
    fixed = _fixed(there)
    assert fixed == _fixed(main)
    assert _says(there) == f"{fixed}/baker {_says(main).split()[1]} {fixed}/baker 1\n"
    # And the first edit builds what it must.
    write(there, {"baker/value.txt": "2\n"})
    built = cow(there, tmp_path, "test", "--sandbox", *ALL)
    assert built.status == 0, built.output
    assert built.rustc.count("baker") == 2
    assert _says(there).endswith(" 2\n")
    assert _says(main).endswith(" 1\n")
    assert method in ("own", "bubblewrap")


def test_in_and_out_and_in(main: Path, own: None, tmp_path: Path) -> None:
    fixed = _fixed(main)
    outside, inside = None, None
    for _ in range(2):
        built = cow(main, tmp_path, "build", "--workspace")
        assert built.status == 0, built.output
        outside = outside or _clean(main, tmp_path)
        assert _says(main) == outside
        built = cow(main, tmp_path, "build", "--workspace", "--sandbox")
        assert built.status == 0, built.output
        inside = inside or _clean(main, tmp_path, at=fixed)
        assert _says(main) == inside
    assert outside is not None
    assert inside is not None
    assert str(fixed) not in outside
    assert str(main) not in inside
    # A clone that comes from inside is as good as any other.
    there = _worktree(main, "there")
    assert cow(there, tmp_path, "build", "--workspace").status == 0
    assert _says(there) == _clean(there, tmp_path)
    del own


@pytest.mark.parametrize("first", ["outside", "inside"])
def test_what_was_never_recorded_is_not_taken_for_what_is_built_here(
    main: Path, own: None, tmp_path: Path, first: str
) -> None:
    """A build whose capture never came: killed, or plain Cargo where nothing prepared it."""
    fixed = _fixed(main)
    enter = [str(native.program()), "--enter", "--room", str(fixed.parent)]
    enter += ["--bind", str(main), str(fixed), "--directory", str(fixed), "--"]
    fixed.parent.mkdir(parents=True)
    plain = ["cargo", "build", "-q", "--workspace"]
    subprocess.run([*(enter if first == "inside" else []), *plain], cwd=main, check=True)
    settle()
    options = ["--workspace"] + (["--sandbox"] if first == "outside" else [])
    built = cow(main, tmp_path, "build", *options)
    assert built.status == 0, built.output
    assert _says(main) == _clean(main, tmp_path, at=fixed if first == "outside" else None)
    # Nor does a donor's such target spoil another checkout.
    shutil.rmtree(main / "target")
    subprocess.run([*(enter if first == "inside" else []), *plain], cwd=main, check=True)
    there = _worktree(main, "there")
    assert cow(there, tmp_path, "build", *options).status == 0
    assert _says(there) == _clean(there, tmp_path, at=fixed if first == "outside" else None)
    del own


def test_git_inside(main: Path, method: str, tmp_path: Path) -> None:
    there = _worktree(main, "there")
    fixed = _fixed(there)
    administration = Path(git(there, "rev-parse", "--absolute-git-dir"))
    before = (administration / "gitdir").read_text()
    script = (
        "git rev-parse --show-toplevel && git worktree list --porcelain && git worktree prune -v"
        " && echo more > more.txt && git add more.txt && git commit -qm inside && git status -s"
    )
    said = _enter(there, tmp_path, "sh", "-c", script)
    assert str(fixed) in said
    assert f"worktree {main}\n" in said
    assert f"worktree {fixed}\n" in said
    assert f"worktree {there}\n" not in said
    assert (administration / "gitdir").read_text() == before
    assert git(there, "log", "--format=%s", "-1") == "inside"
    assert git(there, "status", "--short") == ""
    assert str(there) in git(main, "worktree", "list")
    git(main, "worktree", "prune")
    assert git(there, "rev-parse", "--show-toplevel") == str(there)
    # The main checkout, whose git directory is its own.
    assert str(fixed) in _enter(main, tmp_path, "git", "rev-parse", "--show-toplevel")
    assert method in ("own", "bubblewrap")


def test_a_worktree_with_relative_links(main: Path, own: None, tmp_path: Path) -> None:
    there = _worktree(main, "there")
    administration = Path(git(there, "rev-parse", "--absolute-git-dir"))
    (there / ".git").write_text(f"gitdir: {os.path.relpath(administration, there)}\n")
    (administration / "gitdir").write_text(f"{os.path.relpath(there / '.git', administration)}\n")
    assert git(there, "rev-parse", "--show-toplevel") == str(there)
    said = _enter(there, tmp_path, "git", "rev-parse", "--show-toplevel")
    assert str(_fixed(there)) in said
    assert git(there, "rev-parse", "--show-toplevel") == str(there)
    del own


def test_a_nested_worktree_and_a_subdirectory(main: Path, own: None, tmp_path: Path) -> None:
    there = main / ".worktrees" / "x"
    git(main, "worktree", "add", "-q", str(there))
    fixed = _fixed(there)
    assert _enter(there / "app", tmp_path, "pwd") == f"{fixed}/app\n"
    link = main.parent / "link"
    link.symlink_to(there)
    assert _enter(link / "app", tmp_path, "pwd") == f"{fixed}/app\n"
    built = cow(link / "app", tmp_path, "run", "--sandbox")
    assert built.status == 0, built.output
    assert f"{fixed}/baker" in built.output
    manifest = f"--manifest-path={there}/app/Cargo.toml"
    built = cow(main.parent, tmp_path, "run", "--sandbox", manifest)
    assert (built.status, built.rustc) == (0, []), built.output
    assert f"{fixed}/baker" in built.output
    del own


@pytest.mark.parametrize("how", ["environment", "configuration", "build-dir"])
def test_a_target_that_lies_elsewhere(main: Path, own: None, tmp_path: Path, how: str) -> None:
    outputs = main.parent / "outputs"
    there = _worktree(main, "there")
    for root in (main, there):
        extra = {}
        target = outputs / root.name
        if how == "environment":
            extra["CARGO_TARGET_DIR"] = str(target)
        else:
            key = "target-dir" if how == "configuration" else "build-dir"
            value = (
                f"{outputs}/{root.name}"
                if key == "target-dir"
                else (f"{outputs}/{{workspace-path-hash}}")
            )
            write(root, {".cargo/config.toml": f'[build]\n{key} = "{value}"\n'})
        settle()
        built = cow(root, tmp_path, "build", "--sandbox", *ALL, "-v", **extra)
        assert built.status == 0, built.output
        expected = root / "target" if how == "build-dir" else target
        program = expected / "debug" / "app"
        said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
        assert str(outputs) not in said
        if root == there:
            if how == "environment":
                # The main checkout's own target is named by a variable that is not set here.
                assert built.rustc
                continue
            assert (built.rustc, built.scripts) == ([], 0), built.output
        assert (main / "target").is_dir() == (how == "build-dir")
    del own


def test_what_is_found_by_going_up_counts_inside(
    main: Path, own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = 'fn main() { println!("{}{:?}", env!("ABOVE"), option_env!("PLACE")); }\n'
    flags = "".join(
        f'#[cfg(x = "{name}")] pub const FLAG: &str = "{name}";\n' for name in ("near", "far")
    )
    write(main, {"app/src/main.rs": show, "baker/src/lib.rs": flags})
    home = main.parent.parent
    write(
        home,
        {".cargo/config.toml": '[env]\nABOVE = "far"\nPLACE = { value = "p", relative = true }\n'},
    )
    write(main.parent, {".cargo/config.toml": '[env]\nABOVE = "near"\n'})
    settle()
    try:
        expected = subprocess.run(
            ["cargo", "run", "-q"], cwd=main, check=True, capture_output=True, text=True
        ).stdout
        assert expected.startswith('nearSome("')
        built = cow(main, tmp_path, "run", "--sandbox")
        assert expected in built.output, built.output
    finally:
        shutil.rmtree(home / ".cargo")
    # What counts at the fixed path and not here cannot be left out.
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    write(tmp_path, {".cargo/config.toml": '[env]\nABOVE = "wrong"\n'})
    refused = cow(main, tmp_path, "run", "--sandbox")
    assert refused.status == 51
    assert "counts only at the fixed path" in refused.output
    del own


def test_a_package_beside_the_checkout(main: Path, own: None, tmp_path: Path) -> None:
    outer = '[dependencies]\nother = { path = "../../other" }\n'
    write(
        main,
        {
            "app/Cargo.toml": _manifest("app", outer),
            "app/src/main.rs": 'fn main() { println!("{}", other::NAME); }\n',
        },
    )
    write(
        main.parent,
        {
            "other/Cargo.toml": _manifest("other", '[dependencies]\nthird = { path = "../third" }'),
            "other/src/lib.rs": "pub use third::NAME;\n",
            "third/Cargo.toml": _manifest("third"),
            "third/src/lib.rs": 'pub const NAME: &str = "third";\n',
        },
    )
    built = cow(main, tmp_path, "run", "--sandbox")
    assert built.status == 0, built.output
    assert built.output.startswith("third\n")
    settle()
    write(main.parent, {"third/src/lib.rs": 'pub const NAME: &str = "edited";\n'})
    assert cow(main, tmp_path, "run", "--sandbox").output.startswith("edited\n")
    (main.parent.parent / "far").mkdir()
    far = outer.replace("../../other", "../../../far")
    write(main, {"app/Cargo.toml": _manifest("app", far)})
    write(main.parent.parent, {"far/Cargo.toml": _manifest("other"), "far/src/lib.rs": ""})
    try:
        refused = cow(main, tmp_path, "run", "--sandbox")
        assert refused.status == 51
        assert "leads elsewhere" in refused.output
    finally:
        shutil.rmtree(main.parent.parent / "far")
    del own


def test_a_build_with_nothing_to_do_enters_once(
    main: Path, own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cow(main, tmp_path, "build", "--sandbox", "--workspace").status == 0
    time.sleep(0.1)
    assert cow(main, tmp_path, "build", "--sandbox", "--workspace").status == 0
    program = tmp_path / "counted-native"
    program.write_text(
        f'#!/bin/sh\necho "$1" >> {tmp_path}/native-calls\nexec {native.program()} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("CARGO_COW_NATIVE", str(program))
    assert cow(main, tmp_path, "build", "--sandbox", "--workspace").status == 0
    assert (tmp_path / "native-calls").read_text() == "--enter\n"
    # An edit is seen, and so is one that only another checkout would be blind to.
    write(main, {"baker/value.txt": "7\n"})
    assert cow(main, tmp_path, "build", "--sandbox", "--workspace").rustc == ["app", "baker"]
    assert _says(main).endswith(" 7\n")
    del own


# ---------------------------------------------------------------------------------------------
# The command itself


def test_status_and_streams_are_the_commands(main: Path, method: str, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "cargo_cow", "enter", "--", *words],
            cwd=main,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            input=b"given\n",
            capture_output=True,
            check=False,
        )

    done = run("sh", "-c", "cat; echo told >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"given\n", b"told\n")
    assert run("sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    # A writer whose reader has gone dies quietly.
    assert run("sh", "-c", "yes | head -1").stderr == b""
    done = run("/nowhere/at-all")
    assert done.returncode == 127
    assert b"/nowhere/at-all" in done.stderr
    done = run("sh", "-c", 'echo "$PWD" "$CARGO_COW_SANDBOX"; ls /proc/self/fd | wc -l')
    fixed = _fixed(main)
    assert done.stdout.decode().split() == [str(fixed), str(fixed), "4"]
    done = run(sys.executable, "-m", "cargo_cow", "enter", "true")
    assert done.returncode == 2
    assert b"sandbox mode already" in done.stderr
    # Beside the checkout nothing is written that would be lost.
    assert b"Read-only" in run("sh", "-c", "touch ../lost").stderr
    assert method in ("own", "bubblewrap")
    assert not list(fixed.parent.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_reach_the_command(
    main: Path, method: str, tmp_path: Path, number: signal.Signals
) -> None:
    """A command that ends in its own time is waited for, and its status is ours."""
    script = f"trap 'echo got; exit 5' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [sys.executable, "-m", "cargo_cow", "enter", "--", "sh", "-c", script],
        cwd=main,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as the terminal does
        else:
            process.send_signal(number)
        assert process.stdout.read() == b"got\n"
        assert process.wait(timeout=20) == 5
    assert method in ("own", "bubblewrap")


def test_no_network_and_a_home_that_cannot_be_written(
    main: Path, method: str, tmp_path: Path
) -> None:
    home = Path(os.environ["HOME"])
    (home / "precious").write_text("kept")
    script = (
        "echo lost > $HOME/precious; echo more > more.txt; cat more.txt;"
        " tail -n +3 /proc/net/dev | cut -d: -f1; touch $HOME/.cache/cargo-cow/mine && echo mine"
    )
    done = cow(
        main, tmp_path, "enter", "--no-network", "--read-only-home", "--", "sh", "-c", script
    )
    assert (home / "precious").read_text() == "kept"
    assert "Read-only" in done.output
    assert [line.strip() for line in done.output.splitlines()][:3] == ["more", "lo", "mine"]
    served = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "socket.create_connection(s.getsockname()); print('reached')"
    )
    options = ("--no-network", "--", sys.executable, "-c", served)
    assert cow(main, tmp_path, "enter", *options).output == "reached\n"
    built = cow(main, tmp_path, "build", "--sandbox", "--no-network", "--read-only-home")
    assert built.status == 0, built.output
    assert method in ("own", "bubblewrap")


def test_without_root(btrfs: Path, unprivileged: Callable[..., object]) -> None:
    main = repository(btrfs / "project", FILES)
    there = _worktree(main, "there")
    cache = btrfs / "cache"
    cache.mkdir()
    program = btrfs / "cargo-cow-native"
    shutil.copy(native.program(), program)
    for directory, _, names in os.walk(btrfs):
        for name in ("", *names):
            shutil.chown(Path(directory, name), 65534, 65534) if os.geteuid() == 0 else None
    said = unprivileged(_entered, there, cache, program)
    assert said == f"{_room_below(cache)}/project\n"


def _room_below(cache: Path) -> Path:
    return next((cache / "cargo-cow" / "sandbox").iterdir())


def _entered(root: Path, cache: Path, program: Path) -> str:
    """In a child that is nobody: a view by hand, as no Cargo of nobody's is to be had."""
    os.environ.update(
        HOME=str(cache), XDG_CACHE_HOME=str(cache), CARGO_HOME=str(cache),
        RUSTUP_HOME=str(cache), CARGO_COW_NATIVE=str(program),
    )  # fmt: skip
    workspace = workspaces.Workspace(root, root / "target", root / "target", ())
    view = sandbox.plan(workspace, str(root))
    out = cache / "out"
    assert sandbox.run(view, ["sh", "-c", f"pwd > {out}; touch inside"], method="own") == 0
    assert (root / "inside").exists()
    return out.read_text()


# ---------------------------------------------------------------------------------------------
# Refusals


def test_a_submodule_is_refused(main: Path, own: None, tmp_path: Path) -> None:
    outer = repository(main.parent / "outer", {"a": "a"})
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(main), "sub")
    refused = cow(outer / "sub", tmp_path, "enter", "true")
    assert refused.status == 51
    assert "core.worktree" in refused.output
    del own


def test_where_namespaces_are_refused_nothing_is_run(main: Path, tmp_path: Path) -> None:
    """Root without the privilege, as in most containers: everything else works."""
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"),
            *(sys.executable, "-m", "cargo_cow", "build", "--sandbox"),
        ],
        cwd=main,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 51, done.stderr
    assert "cargo cow doctor" in done.stderr
    assert not (main / "target").exists()
