"""What every test gets: a scrubbed environment; and what many ask for: real filesystems.

``btrfs``, ``xfs`` and ``ext4`` give a fresh directory on a loop image that the session shares;
``any_filesystem`` gives each of them in turn, ``zfs`` a dataset in a pool in a file.
``unprivileged`` runs a function as nobody.

A capability that is missing skips the test, with the reason; under ``CI=true`` it is a failure,
because there it was promised.
"""

from __future__ import annotations

import codecs
import fcntl
import hashlib
import importlib
import os
import pickle
import pkgutil
import platform
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

import pytest

from tests.support.capabilities import PROMISED, missing
from tests.support.watching import watched

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

# --- capabilities -----------------------------------------------------------------------------

# Started in the background of a shell, or by nohup, we inherit ignored signals, and so would every
# program under test: what is sent to it would be lost.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(
            _number,
            signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI=true no test is skipped for want of anything, however it says so."""
    report = yield
    if PROMISED and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"promised under CI=true, but skipped: {reason}"
    return report


@pytest.fixture
def x86_64() -> None:
    """The machine whose system calls some tests make by themselves."""
    if platform.machine() != "x86_64":
        missing("it makes system calls of x86-64")


@pytest.fixture(name="missing", scope="session")
def _missing() -> Callable[[str], NoReturn]:
    """The function ``missing(reason)``, for the PROBE of a test module."""
    return missing


# --- environment ------------------------------------------------------------------------------

_SCRUBBED = ("CARGO_", "COW_", "GIT_", "RUSTC", "RUSTDOC", "RUSTFLAGS", "XDG_", "__CARGO_")
_KEPT = (
    # How to reach crates, not what is built.
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
    # How long the oracle and the long-lived store may run.
    "COW_ORACLE_",
    "COW_CYCLES",
)


@pytest.fixture(scope="session", autouse=True)
def _scrubbed_environment() -> Iterator[None]:
    """No variable of the caller's decides what Cargo, rustc or git do in a test.

    cargo and rustc are rustup's proxies, so both homes are named before HOME changes.
    """
    with pytest.MonkeyPatch.context() as patch:
        home = Path.home()
        for variable, default in (("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")):
            value = os.environ.get(variable) or str(home / default)
            patch.setenv(variable, value)
        for name in list(os.environ):
            kept = name == "CARGO_HOME" or name.startswith(_KEPT)
            if name.startswith(_SCRUBBED) and not kept:
                patch.delenv(name)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("GIT_TERMINAL_PROMPT", "0")
        # A compaction that outlives its test would keep the test's filesystem busy.
        patch.setenv("GIT_CONFIG_COUNT", "1")
        patch.setenv("GIT_CONFIG_KEY_0", "cargo-cow.compact")
        patch.setenv("GIT_CONFIG_VALUE_0", "false")
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Tester")
            patch.setenv(f"GIT_{role}_EMAIL", "tester@example.invalid")
        for name in ("LC_ALL", "LANGUAGE", "NO_COLOR", "CLICOLOR_FORCE", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        patch.setenv("LC_ALL", "C.UTF-8")
        yield


@pytest.fixture(autouse=True)
def _own_home(
    _scrubbed_environment: None,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every test has its own home and cache, outside of its ``tmp_path``."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))


# --- filesystems on loop images ---------------------------------------------------------------

_ROOM_PREFIX = "cargo-cow-tests-"
_TOOL_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_GIB = 1 << 30


class _Format(NamedTuple):
    program: str
    options: tuple[str, ...]
    kernel_name: str


_FORMATS = {
    "btrfs": _Format("mkfs.btrfs", ("--quiet",), "btrfs"),
    "xfs": _Format("mkfs.xfs", ("-q", "-m", "reflink=1"), "xfs"),
    "ext4": _Format("mkfs.ext4", ("-q", "-F"), "ext4"),
    # no room for nanoseconds
    "ext4-old": _Format("mkfs.ext4", ("-q", "-F", "-I", "128"), "ext4"),
}


def _run(*command: str) -> str:
    program = shutil.which(command[0], path=_TOOL_PATH)
    if program is None:
        missing(f"{command[0]} is not installed")
    done = subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _mounts_below(room: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = (line.split(" ")[4] for line in lines)
    return [point for point in points if point.startswith(f"{room}/")]


class _Room:
    """A directory that holds images and their mount points, locked while its session lives.

    It lies directly below the system's temporary directory, because pytest's own is closed to
    other users, and pytest would clear away the files of a filesystem that a killed session left
    mounted there.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_ROOM_PREFIX)).resolve()
        self.path.chmod(0o755)
        self._zfs: _SharedZfs | None = None
        self._lock = (self.path / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def make(self, kind: str, size: int, name: str, options: str = "") -> Path:
        """Make and mount a filesystem of ``size`` bytes (sparse); its mount point."""
        if os.geteuid() != 0:
            missing("loop devices and mounts need root")
        how = _FORMATS[kind]
        image, point = self.path / f"{name}.img", self.path / name
        with image.open("xb") as file:
            file.truncate(size)
        _run(how.program, *how.options, str(image))
        point.mkdir()
        options = ",".join(filter(None, ("loop", options)))
        try:
            _run("mount", "-t", how.kernel_name, "-o", options, str(image), str(point))
        except OSError as error:
            self.drop(name)
            missing(f"{kind} on a loop device cannot be mounted: {error}")
        return point

    def cut_power(self, kind: str, name: str) -> None:
        """What :meth:`make` made becomes what was on its device at this moment: what is only in
        memory is lost, and the journal is replayed."""
        image, point, saved = (self.path / f"{name}{end}" for end in (".img", "", ".saved"))
        _run("cp", "--sparse=always", str(image), str(saved))
        _run("umount", str(point))
        saved.rename(image)
        mount = ("mount", "-t", _FORMATS[kind].kernel_name, "-o", "loop", str(image), str(point))
        until = time.monotonic() + 30
        while True:
            try:
                _run(*mount)
            except OSError:
                # The old one lives on in a mount namespace that somebody made meanwhile (rustc
                # runs in such): until that ends, its UUID is taken.
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
            else:
                return

    def drop(self, name: str) -> None:
        """Unmount and remove what :meth:`make` made, and detach its loop device."""
        image, point = self.path / f"{name}.img", self.path / name
        _take_down(self.path, point, image)

    def make_pool(self) -> Path:
        """Make a ZFS pool in a file, with the kernel's ZFS or else a zfs-fuse of our own; its
        mount point."""
        if os.geteuid() != 0:
            missing("pools need root")
        for program in ("zfs", "zpool"):
            if shutil.which(program, path=_TOOL_PATH) is None:
                missing(f"{program} is not installed")
        image, point = self.path / "zfs.pool", self.path / "zfs"
        with image.open("xb") as file:
            file.truncate(2 * _GIB)
        self._zfs = _SharedZfs()
        name = f"cow-{os.urandom(4).hex()}"
        (self.path / "pool").write_text(name)
        _run("zpool", "create", "-o", "cachefile=none", "-m", str(point), name, str(image))
        return point

    def drop_pool(self) -> None:
        """Destroy the pool, and end the zfs-fuse that was started for it."""
        _drop_pool(self.path)
        if self._zfs is not None:
            self._zfs.close()

    def close(self) -> None:
        self.drop_pool()
        for image in self.path.glob("*.img"):
            self.drop(image.stem)
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _answers(*command: str) -> bool:
    try:
        _run(*command)
    except OSError:
        return False
    return True


# A zfs-fuse flushes its device with sync(2), which waits for every filesystem of the machine.
_NO_SYNC = "void sync(void) {} int fsync(int file) { return 0; }\n"


class _SharedZfs:
    """The kernel's ZFS, or else a zfs-fuse, of which there is one: sessions share it, and the last
    of them ends it, if it was one of them that started it."""

    def __init__(self) -> None:
        self._place = Path(tempfile.gettempdir()).resolve()
        self._noted = self._place / f"{_ROOM_PREFIX}zfs-fuse.pid"
        self._used = self._open("use")
        try:
            with self._open("start") as starting:
                fcntl.flock(starting, fcntl.LOCK_EX)
                fcntl.flock(self._used, fcntl.LOCK_SH)
                if not _answers("zpool", "list"):
                    self._start()
        except BaseException:
            self._used.close()
            raise

    def _open(self, what: str) -> IO[str]:
        return (self._place / f"{_ROOM_PREFIX}zfs-fuse.{what}").open("w")

    def _start(self) -> None:
        program = shutil.which("zfs-fuse", path=_TOOL_PATH)
        if program is None:
            missing("neither the kernel's ZFS nor zfs-fuse is there")
        self._noted.unlink(missing_ok=True)  # it would not start with that there
        command = [program, "--no-kstat-mount", "--pidfile", str(self._noted)]
        with tempfile.TemporaryDirectory() as scratch:
            library = Path(scratch, "no-sync.so")
            build = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
            subprocess.run(build, input=_NO_SYNC, text=True, check=True)
            environment = {**os.environ, "LD_PRELOAD": str(library)}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            until = time.monotonic() + 20
            while not _answers("zpool", "list"):
                if time.monotonic() > until:
                    missing(f"zfs-fuse does not run: {done.stdout}{done.stderr}")
                time.sleep(0.05)

    def close(self) -> None:
        with self._used, self._open("start") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            try:
                fcntl.flock(self._used, fcntl.LOCK_EX | fcntl.LOCK_NB)
                number = int(self._noted.read_text())
            except (OSError, ValueError):
                return  # others use it, or nobody here has started it
            running = Path(f"/proc/{number}/comm")
            if running.exists() and running.read_text().strip() == "zfs-fuse":
                os.kill(number, signal.SIGTERM)
                until = time.monotonic() + 20
                while running.exists() and time.monotonic() < until:
                    time.sleep(0.05)
            self._noted.unlink()


def _drop_pool(room: Path) -> None:
    noted = room / "pool"
    if noted.exists():
        name = noted.read_text()
        until = time.monotonic() + 10
        while _answers("zpool", "list", name) and not _answers("zpool", "destroy", "-f", name):
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        noted.unlink()
    for mounted in reversed(_mounts_below(room)):
        if mounted == f"{room}/zfs" or mounted.startswith(f"{room}/zfs/"):
            _run("umount", "--lazy", mounted)


def _take_down(room: Path, point: Path, image: Path) -> None:
    for mounted in reversed(_mounts_below(room)):  # what a test mounted inside goes first
        if mounted == str(point) or mounted.startswith(f"{point}/"):
            try:
                _run("umount", mounted)
            except OSError:
                _run("umount", "--lazy", mounted)  # a test left an open file: gone when it closes
    # mount -o loop detaches by itself; only devices on this very image are ours.
    if image.exists():
        for line in _run("losetup", "-j", str(image)).splitlines():
            _run("losetup", "-d", line.partition(":")[0])
        image.unlink()
    if point.is_dir():
        point.rmdir()


def _sweep() -> None:
    """Take down what killed sessions left: rooms of this user that nobody holds the lock of."""
    for room in Path(tempfile.gettempdir()).resolve().glob(f"{_ROOM_PREFIX}*"):
        lock = room / "lock"
        if not lock.exists() or lock.stat().st_uid != os.geteuid():
            continue
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _drop_pool(room)
            for image in room.glob("*.img"):
                _take_down(room, room / image.stem, image)
            shutil.rmtree(room, ignore_errors=True)


@pytest.fixture(scope="session")
def _room() -> Iterator[_Room]:
    _sweep()
    room = _Room()
    try:
        yield room
    finally:
        room.close()


@pytest.fixture(scope="session")
def btrfs_mount(_room: _Room) -> Path:
    """Mount point of the session's Btrfs (4 GiB)."""
    return _room.make("btrfs", 4 * _GIB, "btrfs")


@pytest.fixture(scope="session")
def xfs_mount(_room: _Room) -> Path:
    """Mount point of the session's XFS with reflinks (4 GiB)."""
    return _room.make("xfs", 4 * _GIB, "xfs")


@pytest.fixture(scope="session")
def ext4_mount(_room: _Room) -> Path:
    """Mount point of the session's ext4 (4 GiB)."""
    return _room.make("ext4", 4 * _GIB, "ext4")


@pytest.fixture(scope="session")
def zfs_mount(_room: _Room) -> Path:
    """Mount point of the session's ZFS pool (2 GiB), of which it is the only dataset."""
    return _room.make_pool()


def _fresh(mount: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:60]
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=mount))
    directory.chmod(0o755)
    yield directory
    # For space: what resists goes with the image.
    remove = ["rm", "-rf", "--", str(directory)]
    if subprocess.run(remove, capture_output=True, check=False).returncode:
        # A read-only subvolume does.  The root of any has this inode.
        find = ["find", str(directory), "-depth", "-type", "d", "-inum", "256"]
        done = subprocess.run(find, capture_output=True, check=False, text=True)
        for subvolume in done.stdout.splitlines():
            _answers("btrfs", "subvolume", "delete", subvolume)
        subprocess.run(remove, capture_output=True, check=False)


@pytest.fixture
def btrfs(btrfs_mount: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A fresh directory (no subvolume) on a real Btrfs."""
    yield from _fresh(btrfs_mount, request)


@pytest.fixture
def xfs(xfs_mount: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A fresh directory on a real XFS with reflinks."""
    yield from _fresh(xfs_mount, request)


@pytest.fixture
def ext4(ext4_mount: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A fresh directory on a real ext4: no reflinks, the negative control."""
    yield from _fresh(ext4_mount, request)


@pytest.fixture
def zfs(zfs_mount: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A dataset of the test's own in a real ZFS pool."""
    pool = (zfs_mount.parent / "pool").read_text()
    name = f"{pool}/{os.urandom(4).hex()}"
    _run("zfs", "create", name)
    note = Path(tempfile.gettempdir()) / f"{_ROOM_PREFIX}zfs-fuse.pid"
    with watched(zfs_mount, note):
        yield zfs_mount / name.rpartition("/")[2]
    until = time.monotonic() + 10
    # Clones of one test refer to each other only, so -R ends at this dataset.
    while not _answers("zfs", "destroy", "-R", name) and time.monotonic() < until:
        for line in _run("zfs", "list", "-H", "-r", "-t", "snapshot", "-o", "name", name).split():
            _answers("zfs", "release", "cargo-cow", line)
        time.sleep(0.1)


@pytest.fixture
def zfs_container(zfs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A dataset of the test's own with a container, in which targets are datasets."""
    from cargo_cow.filesystems import temporaries
    from cargo_cow.filesystems import zfs as datasets

    # Compilers of other tests may have its mounts in their namespaces.
    monkeypatch.setattr(datasets, "_PATIENCE", 60.0)
    datasets.make_container(zfs)
    yield zfs
    for path in list(temporaries._held):  # what is open cannot be destroyed
        temporaries.release(path)


@pytest.fixture(params=["btrfs", "xfs", "ext4"])
def any_filesystem(request: pytest.FixtureRequest) -> Path:
    """A fresh directory on each of the three in turn."""
    directory = request.getfixturevalue(request.param)
    assert isinstance(directory, Path)
    return directory


@pytest.fixture
def small_filesystem(_room: _Room, request: pytest.FixtureRequest) -> Iterator[Callable[..., Path]]:
    """``small_filesystem(kind, size, options="")``: one of the test's own, to be filled up."""
    names: list[str] = []

    def make(kind: str, size: int, options: str = "") -> Path:
        names.append(f"small-{os.urandom(4).hex()}")
        return _room.make(kind, size, names[-1], options)

    yield make
    for name in names:
        _room.drop(name)


@pytest.fixture
def cut_power(_room: _Room) -> Callable[[str, Path], None]:
    """``cut_power(kind, mount)`` for a ``small_filesystem``: everything not written is lost."""
    return lambda kind, mount: _room.cut_power(kind, mount.name)


# --- without root -----------------------------------------------------------------------------

NOBODY = 65_534


@pytest.fixture
def unprivileged(_room: _Room, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``unprivileged(function, *arguments)`` calls it in a child that runs as nobody.

    The result, or the exception, comes back pickled.  The checkout may be closed to nobody: all of
    the package that is loaded late is loaded here, and the native program is where all may go.
    """
    if os.geteuid() != 0:
        return lambda function, *arguments: function(*arguments)
    import cargo_cow.filesystems.syscalls
    from cargo_cow import native

    for module in pkgutil.walk_packages(cargo_cow.__path__, "cargo_cow."):
        if not module.name.startswith(("cargo_cow.cli", "cargo_cow.bench", "cargo_cow.__main__")):
            importlib.import_module(module.name)
    codecs.lookup("ascii")  # a module of its own, which Python loads when it is first asked for
    cargo_cow.filesystems.syscalls._libc()
    program = _room.path / native.NAME
    if not program.exists():
        shutil.copy(native.program(), program)
        program.chmod(0o755)
    monkeypatch.setenv("CARGO_COW_NATIVE", str(program))
    return _as_nobody


def _as_nobody(function: Callable[..., object], *arguments: object) -> object:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _answer_as_nobody(write, function, arguments)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    assert answer, f"the child ended without an answer (wait status {status})"
    answered: tuple[object, BaseException | None, str] = pickle.loads(answer)
    result, error, trace = answered
    if error is not None:
        error.add_note(f"as nobody:\n{trace}")
        raise error
    return result


def _answer_as_nobody(
    write: int, function: Callable[..., object], arguments: tuple[object, ...]
) -> NoReturn:
    answer: tuple[Any, BaseException | None, str] = (None, None, "")
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.umask(0o022)
        answer = (function(*arguments), None, "")
    except BaseException as error:  # noqa: BLE001 - it is carried to the parent
        answer = (None, error, traceback.format_exc())
    try:
        with os.fdopen(write, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
    finally:
        os._exit(0)


# --- trees ------------------------------------------------------------------------------------


class _Trees:
    """Plants trees that hold everything a clone must keep, and tells what is in one."""

    @staticmethod
    def plant(root: Path, *, files: int = 0, seed: int = 1) -> None:
        """Fill the existing directory ``root``; ``files`` more of 6,000 bytes on top."""
        random = Random(seed)
        old = 1_234_567_890_123_456_789
        inner = root / "debug" / "deps"
        inner.mkdir(parents=True)
        (root / "empty").mkdir()
        (inner / "libbig.rlib").write_bytes(random.randbytes(300_000))
        (inner / "small.d").write_bytes(b"small: in the metadata, on Btrfs\n")
        (inner / "nothing").touch()
        (root / "debug" / "uplifted").hardlink_to(inner / "libbig.rlib")
        (inner / "again").hardlink_to(inner / "libbig.rlib")
        with (inner / "sparse").open("xb") as file:
            file.write(b"head" * 1024)
            file.seek(1 << 20)
            file.write(b"tail" * 1024)
            file.truncate(3 << 20)
        (root / "to-file").symlink_to("debug/uplifted")
        (root / "to-directory").symlink_to("debug")
        (root / "dangling").symlink_to("/nowhere/at all")
        (inner / "program").write_bytes(random.randbytes(5_000))
        (inner / "program").chmod(0o755)
        (inner / "secret").write_bytes(random.randbytes(5_000))
        (inner / "secret").chmod(0o400)
        Path(os.fsdecode(os.fsencode(inner) + b"/not-utf8-\xff")).write_bytes(b"x" * 3_000)
        (inner / "line\nbreak").write_bytes(b"y" * 3_000)
        os.setxattr(inner / "program", "user.cow", b"kept \0 bytes")
        os.setxattr(root / "debug", "user.cow", b"on a directory")
        for number in range(files):
            place = root / "many" / str(number // 100)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"f{number}").write_bytes(random.randbytes(6_000))
        (root / "empty").chmod(0o700)
        (inner / "read-only").mkdir()
        (inner / "read-only" / "file").write_bytes(b"z" * 4_000)
        (inner / "read-only").chmod(0o555)
        # Times last, the deepest first, each different down to the nanosecond.
        paths = [path for path in root.rglob("*") if not path.is_symlink()]
        for count, path in enumerate(sorted(paths, reverse=True)):
            os.utime(path, ns=(old + count, old + count * 1_000_003))
        for path in root.rglob("*"):
            if path.is_symlink():
                os.utime(path, ns=(old, old + 7), follow_symlinks=False)
        os.utime(root, ns=(old, old + 9))
        root.chmod(0o751)

    @staticmethod
    def facts(root: Path) -> dict[bytes, tuple[object, ...]]:
        """By relative path: everything that must survive a clone (times in ns, of the owner
        nothing: that is kept where permitted)."""
        found: dict[bytes, tuple[object, ...]] = {}
        links: dict[tuple[int, int], list[bytes]] = {}
        for path in [root, *sorted(root.rglob("*"))]:
            name = os.fsencode(path)[len(os.fsencode(root)) :]
            status = path.lstat()
            common = (status.st_mode, status.st_mtime_ns)
            if path.is_symlink():
                found[name] = (*common, path.readlink())
                continue
            attributes = {key: os.getxattr(path, key) for key in os.listxattr(path)}
            if path.is_dir():
                found[name] = (*common, attributes)
                continue
            links.setdefault((status.st_dev, status.st_ino), []).append(name)
            found[name] = (
                *common,
                attributes,
                hashlib.sha256(path.read_bytes()).hexdigest(),
                _data_ranges(path),
            )
        for names in links.values():
            for name in names:
                found[name] += (tuple(names),)
        return found


def _data_ranges(path: Path) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    with path.open("rb") as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # ENXIO: no more data
                return ranges
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            ranges.append((start, end))


@pytest.fixture
def trees() -> type[_Trees]:
    """``trees.plant(root)`` and ``trees.facts(root)``."""
    return _Trees
