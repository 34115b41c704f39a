"""``--clone-tree`` keeps everything, shares what it says it shares, and harms nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from cargo_cow import filesystems, native
from cargo_cow.errors import FilesystemFailed, NoSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("native_program")

BEYOND_INLINE = 20_000  # Btrfs keeps up to 2,048 bytes in metadata, which is never shared


@pytest.fixture
def planted(any_filesystem: Path, trees: Any) -> Path:
    """A tree with everything that must be kept, on each filesystem in turn."""
    source = any_filesystem / "source"
    source.mkdir()
    trees.plant(source, files=300)
    os.sync()
    return source


def _can_share(directory: Path) -> bool:
    return filesystems.probe(directory).reflink


# --- what is kept -----------------------------------------------------------------------------


@pytest.fixture
def for_nobody(native_program: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The program where everybody may run it."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        monkeypatch.setenv("CARGO_COW_NATIVE", shutil.copy2(native_program, directory))
        yield


@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_everything_is_kept(planted: Path, trees: Any, mode: native.Mode) -> None:
    clone = planted.with_name("clone")
    before = trees.facts(planted)
    done = native.clone_tree(planted, clone, mode)
    assert trees.facts(clone) == before
    assert trees.facts(planted) == before

    names = [path for path in planted.rglob("*") if not path.is_symlink() and path.is_file()]
    inodes = {path.stat().st_ino for path in names}
    assert done.files == len(inodes) == done.reflinked_files + done.copied_files
    assert done.hard_links == len(names) - len(inodes)
    assert done.symlinks == 3
    assert done.directories == 1 + sum(
        path.is_dir() and not path.is_symlink() for path in planted.rglob("*")
    )
    assert (done.vanished, done.changed, done.special, done.attributes_dropped) == (0, 0, 0, 0)


def test_only_what_is_named_is_taken(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("deps/a", "deps/b", "deps/in/c", "build/x/out/d", "build/y/e", "f"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    os.link(tree / "deps/a", tree / "build/x/linked")
    (tree / "link").symlink_to("f")
    clone = tmp_path / "clone"
    names = ["deps/a", "build/x", "./deps/in/", "no/such", "f/under-a-file", "link/behind"]
    done = native.clone_tree(tree, clone, only=names)
    found = sorted(str(path.relative_to(clone)) for path in clone.rglob("*") if path.is_file())
    assert found == ["build/x/linked", "build/x/out/d", "deps/a", "deps/in/c"]
    assert (clone / "deps/a").stat().st_ino == (clone / "build/x/linked").stat().st_ino
    assert (done.files, done.hard_links, done.symlinks) == (3, 1, 0)
    assert native.clone_tree(tree, tmp_path / "none", only=[]).files == 0


def test_extents_are_shared_where_it_says_so(planted: Path) -> None:
    clone = planted.with_name("clone")
    done = native.clone_tree(planted, clone)
    os.sync()
    shared = filesystems.usage(clone).shared_bytes
    if _can_share(planted.parent):
        assert (done.copied_files, done.copied_bytes, done.copied_reasons) == (0, 0, {})
        assert done.reflinked_bytes > 2_000_000
        assert shared > 2_000_000
    else:
        assert (done.reflinked_files, done.reflinked_bytes, shared) == (0, 0, 0)
        assert done.copied_reasons == {"EOPNOTSUPP": done.files}


def test_a_copy_shares_nothing(planted: Path) -> None:
    """copy_file_range would share behind our back."""
    clone = planted.with_name("clone")
    done = native.clone_tree(planted, clone, "copy")
    os.sync()
    assert (done.reflinked_files, done.copied_reasons) == (0, {})
    assert done.copied_files == done.files
    assert filesystems.usage(clone).shared_bytes == 0


def test_nobody_may_clone_what_root_left(
    planted: Path, trees: Any, for_nobody: None, unprivileged: Callable[..., Any]
) -> None:
    """Owners that cannot be given are left, and take their set-id bits with them."""
    planted.chmod(0o755)
    (planted / "debug/deps/secret").chmod(0o444)
    (planted / "empty").chmod(0o755)
    program = planted / "debug/deps/program"
    program.chmod(0o6755)
    target = planted.parent / "nobody"
    target.mkdir()
    os.chown(target, 65_534, 65_534)
    before = trees.facts(planted)
    unprivileged(native.clone_tree, planted, target / "clone")
    after = trees.facts(target / "clone")
    mine = target / "clone/debug/deps/program"
    if os.geteuid() == 0:
        assert mine.stat().st_uid == 65_534
        assert stat.S_IMODE(mine.stat().st_mode) == 0o755
        mine.chmod(0o6755)
        after = trees.facts(target / "clone")
    assert after == before


def test_owners_and_set_id_bits(any_filesystem: Path, missing: Callable[[str], NoReturn]) -> None:
    if os.geteuid() != 0:
        missing("owners are given by root alone")
    source = any_filesystem / "source"
    (source / "group").mkdir(parents=True)
    for name, owner in (("a", (1, 2)), ("group", (3, 4)), ("group/b", (5, 6))):
        path = source / name
        if not path.exists():
            path.write_bytes(b"x" * BEYOND_INLINE)
        os.chown(path, *owner)
    (source / "link").symlink_to("a")
    os.chown(source / "link", 7, 8, follow_symlinks=False)
    (source / "a").chmod(0o4711)
    (source / "group").chmod(0o2775)
    clone = any_filesystem / "clone"
    native.clone_tree(source, clone)
    for path in source.rglob("*"):
        ours = (clone / path.relative_to(source)).lstat()
        theirs = path.lstat()
        assert (ours.st_uid, ours.st_gid, ours.st_mode) == (
            theirs.st_uid,
            theirs.st_gid,
            theirs.st_mode,
        )


def test_the_callers_mask_has_no_say(any_filesystem: Path) -> None:
    source = any_filesystem / "source"
    source.mkdir()
    (source / "open").touch()
    (source / "open").chmod(0o666)
    old = os.umask(0o077)
    try:
        native.clone_tree(source, any_filesystem / "clone")
    finally:
        os.umask(old)
    assert stat.S_IMODE((any_filesystem / "clone/open").stat().st_mode) == 0o666


def _access_list(*entries: tuple[int, int, int]) -> bytes:
    """(tag, permissions, id) as the kernel stores them: linux/posix_acl_xattr.h."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_access_control_lists(any_filesystem: Path) -> None:
    owner, user, group, mask, other, nobody = 1, 2, 4, 16, 32, 0xFFFF_FFFF
    lists = {
        name: _access_list(
            (owner, 6, nobody), (user, 5, number), (group, 4, nobody), (mask, 5, nobody),
            (other, 0, nobody),
        )
        for name, number in (("access", 1), ("default", 2))
    }  # fmt: skip
    source = any_filesystem / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_bytes(b"x")
    os.setxattr(source / "file", "system.posix_acl_access", lists["access"])
    os.setxattr(source / "sub", "system.posix_acl_default", lists["default"])
    (source / "sub/inherits").touch()
    (source / "sub/plain").touch()
    os.removexattr(source / "sub/plain", "system.posix_acl_access")
    (source / "sub/plain").chmod(0o640)
    clone = any_filesystem / "clone"
    native.clone_tree(source, clone)
    for path in (source, *source.rglob("*")):
        twin = clone / path.relative_to(source)
        assert twin.stat().st_mode == path.stat().st_mode
        assert {name: os.getxattr(twin, name) for name in os.listxattr(twin)} == {
            name: os.getxattr(path, name) for name in os.listxattr(path)
        }
    assert "system.posix_acl_access" in os.listxattr(clone / "sub/inherits")


def test_a_large_directory_and_a_deep_one(any_filesystem: Path, trees: Any) -> None:
    source = any_filesystem / "source"
    (source / "wide").mkdir(parents=True)
    for number in range(1_500):
        (source / "wide" / str(number)).write_text(str(number))
        if number % 3 == 0:
            (source / "wide" / f"also-{number}").hardlink_to(source / "wide" / str(number))
    deep = source
    for number in range(300):
        deep /= "d"
        deep.mkdir()
        (deep / "f").write_text(str(number))
    native.clone_tree(source, any_filesystem / "clone")
    assert trees.facts(any_filesystem / "clone") == trees.facts(source)


def test_few_descriptors_are_enough(any_filesystem: Path, native_program: Path) -> None:
    source = any_filesystem / "source"
    for number in range(600):
        (source / f"a/{number}").mkdir(parents=True)
        (source / f"a/{number}/f").touch()
    command = 'ulimit -n 40; exec "$@"'
    subprocess.run(
        ["sh", "-c", command, "-", native_program, "--clone-tree", source, source.parent / "clone"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert len(list((source.parent / "clone/a").iterdir())) == 600


# --- where it goes ----------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_text("content")
    (source / "sub/file").write_text("more")
    return source


def test_an_empty_directory_is_taken(small: Path, tmp_path: Path, trees: Any) -> None:
    (tmp_path / "clone").mkdir(mode=0o700)
    native.clone_tree(small, tmp_path / "clone")
    assert trees.facts(tmp_path / "clone") == trees.facts(small)


def _is_directory_with_a_file(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("mine")


def _is_file(path: Path) -> None:
    path.write_text("mine")


def _is_link_to_empty_directory(path: Path) -> None:
    path.with_name("empty").mkdir()
    path.symlink_to("empty")


def _is_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "plant",
    [_is_directory_with_a_file, _is_file, _is_link_to_empty_directory, _is_dangling_link],
)
def test_what_is_there_stays(
    small: Path, tmp_path: Path, trees: Any, plant: Callable[[Path], None]
) -> None:
    (tmp_path / "place").mkdir()
    plant(tmp_path / "place/clone")
    before = trees.facts(tmp_path / "place")
    with pytest.raises(FilesystemFailed, match="clone"):
        native.clone_tree(small, tmp_path / "place/clone")
    assert trees.facts(tmp_path / "place") == before


def test_not_into_itself(small: Path, trees: Any) -> None:
    before = trees.facts(small)
    for inside in (small / "clone", small / "sub/clone", small):
        with pytest.raises(FilesystemFailed):
            native.clone_tree(small, inside)
    assert trees.facts(small) == before


def test_the_source_is_a_directory(small: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(small)
    for source in (small / "file", tmp_path / "link", tmp_path / "missing"):
        with pytest.raises(FilesystemFailed, match=str(source)):
            native.clone_tree(source, tmp_path / "clone")
    assert not (tmp_path / "clone").exists()


def test_names_that_look_like_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("--mode").mkdir()
    Path("--mode/--exclude").write_text("x")
    assert native.clone_tree(Path("--mode"), Path("--copy")).files == 1
    assert Path("--copy/--exclude").read_text() == "x"


def test_excluded_names(small: Path, tmp_path: Path) -> None:
    (small / "other").mkdir()
    (small / "other/file").write_text("kept")
    done = native.clone_tree(small, tmp_path / "clone", exclude=["./sub/", Path("file"), "absent"])
    assert done.excluded == 2
    names = {str(path.relative_to(tmp_path / "clone")) for path in (tmp_path / "clone").rglob("*")}
    assert names == {"other", "other/file"}


# --- what ends it -----------------------------------------------------------------------------


def test_reflink_is_a_demand(ext4: Path) -> None:
    (ext4 / "source").mkdir()
    (ext4 / "source/file").write_bytes(b"x" * BEYOND_INLINE)
    with pytest.raises(FilesystemFailed, match=r"Operation not supported.*: .*clone/file"):
        native.clone_tree(ext4 / "source", ext4 / "clone", "reflink")


def test_between_filesystems_it_copies(btrfs: Path, xfs: Path, trees: Any) -> None:
    (btrfs / "source").mkdir()
    trees.plant(btrfs / "source")
    done = native.clone_tree(btrfs / "source", xfs / "clone")
    assert done.copied_reasons == {"EXDEV": done.files}
    # Extents, and so the exact ranges of holes, are each filesystem's own.
    ours, theirs = trees.facts(xfs / "clone"), trees.facts(btrfs / "source")
    assert ours.keys() == theirs.keys()
    assert all(ours[name][:4] == theirs[name][:4] for name in ours)
    sparse = Path("debug/deps/sparse")
    assert (xfs / "clone" / sparse).stat().st_blocks * 512 < 1 << 20
    with pytest.raises(FilesystemFailed):
        native.clone_tree(btrfs / "source", xfs / "demanded", "reflink")


@pytest.mark.parametrize(("source_flag", "parent_flag"), [("+C", "-C"), ("-C", "+C")])
def test_files_without_copy_on_write_are_shared_too(
    btrfs: Path, source_flag: str, parent_flag: str, missing: Callable[[str], NoReturn]
) -> None:
    """Btrfs refuses (EINVAL) to share between ``chattr +C`` and an ordinary file."""
    if shutil.which("chattr") is None:
        missing("chattr is not installed")
    for name, flag in (("source", source_flag), ("place", parent_flag)):
        (btrfs / name).mkdir()
        if flag == "+C":
            subprocess.run(["chattr", flag, btrfs / name], check=True)
    (btrfs / "source/file").write_bytes(b"x" * BEYOND_INLINE)
    os.sync()
    done = native.clone_tree(btrfs / "source", btrfs / "place/clone", "reflink")
    assert done.reflinked_files == 1
    os.sync()
    assert filesystems.usage(btrfs / "place/clone").shared_bytes == 20_480


def test_a_nested_subvolume_is_refused(btrfs: Path, missing: Callable[[str], NoReturn]) -> None:
    (btrfs / "source/sub").mkdir(parents=True)
    if filesystems.create_target(btrfs / "source/sub/volume") != "subvolume":
        missing("no subvolumes here")
    (btrfs / "source/sub/volume/file").touch()
    with pytest.raises(FilesystemFailed, match=r"subvolume.*source/sub/volume"):
        native.clone_tree(btrfs / "source", btrfs / "clone")
    done = native.clone_tree(btrfs / "source", btrfs / "other", exclude=["sub/volume"])
    assert (done.excluded, done.files) == (1, 0)


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_another_mount_is_refused(
    ext4: Path, kind: str, missing: Callable[[str], NoReturn]
) -> None:
    """A bind mount has the same device number as what surrounds it."""
    (ext4 / "source").mkdir()
    for name in ("elsewhere", "source/mounted"):
        if kind == "directory":
            (ext4 / name).mkdir()
        else:
            (ext4 / name).touch()
    mount = subprocess.run(
        ["mount", "--bind", ext4 / "elsewhere", ext4 / "source/mounted"], check=False
    )
    if mount.returncode:
        missing("no bind mounts here")
    try:
        with pytest.raises(FilesystemFailed, match=r"mount.*source/mounted"):
            native.clone_tree(ext4 / "source", ext4 / "clone")
    finally:
        subprocess.run(["umount", ext4 / "source/mounted"], check=True)


def test_a_full_filesystem(small_filesystem: Callable[..., Path]) -> None:
    mount = small_filesystem("ext4", 16 << 20)
    (mount / "source").mkdir()
    for number in range(20):
        (mount / f"source/{number}").write_bytes(os.urandom(500_000))
    with pytest.raises(NoSpace, match=r"No space left on device.*clone"):
        native.clone_tree(mount / "source", mount / "clone")


def test_what_cannot_be_read_is_named(
    ext4: Path, for_nobody: None, unprivileged: Callable[..., Any]
) -> None:
    (ext4 / "source").mkdir()
    (ext4 / "source/file").touch(mode=0)
    ext4.chmod(0o777)
    with pytest.raises(FilesystemFailed, match=r"Permission denied.*source/file"):
        unprivileged(native.clone_tree, ext4 / "source", ext4 / "clone")


# --- what is no file, and what does not stay --------------------------------------------------


def test_sockets_and_pipes_are_counted_not_opened(small: Path, tmp_path: Path) -> None:
    os.mkfifo(small / "pipe")
    with contextlib.chdir(small), socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        done = native.clone_tree(small, tmp_path / "clone")
    assert (done.special, done.files) == (2, 2)
    assert not (tmp_path / "clone/pipe").exists()


def test_a_tree_that_lives(any_filesystem: Path) -> None:
    """What vanishes is counted; whatever is there in the end is whole."""
    source = any_filesystem / "source"
    source.mkdir()
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            directory = source / str(number % 40)
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            for name in "abcdefgh":
                text = f"{number}".encode() * 2_000
                (directory / f"{name}.part").write_bytes(text)
                (directory / f"{name}.part").rename(directory / name)
            (directory / "again").hardlink_to(directory / "a")
            (directory / "link").symlink_to("a")

    living = threading.Thread(target=churn)
    living.start()
    vanished = 0
    try:
        for number in range(30):
            clone = any_filesystem / f"clone-{number}"
            vanished += native.clone_tree(source, clone).vanished
            for path in clone.rglob("?"):
                if path.is_file():
                    text = path.read_bytes()
                    assert text == text[: len(text) // 2_000] * 2_000
            shutil.rmtree(clone)
    finally:
        stop.set()
        living.join()
    print(f"{vanished} names vanished")
