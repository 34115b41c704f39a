"""How an errno of a filesystem becomes an error of ours."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cargo_cow.errors import CowError, FilesystemFailed, NoSpace, TargetUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
UNSUPPORTED = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""What a kernel answers to an ioctl or a flag that this filesystem does not know."""


@contextmanager
def translated(doing: str, path: Path) -> Iterator[None]:
    """Raise an ``OSError`` met inside as the class its cause deserves.

    The message starts with what was being done and to what, and names the file that the kernel
    named if that is another one.  ``FileExistsError`` passes: a name that is taken is an answer
    to whoever asked for that name.
    """
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _failure(error, doing, path) from error


def _failure(error: OSError, doing: str, path: Path) -> CowError:
    cause = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    named = error.filename
    where = f" ({os.fsdecode(named)})" if isinstance(named, str | bytes) else ""
    message = f"{doing} {path}: {cause}{'' if os.fspath(path) in where else where}"
    if error.errno in NO_SPACE:
        return NoSpace(message)
    if error.errno == errno.EROFS:
        return TargetUnusable(message, hint="mount it writable; dmesg may say why it is not")
    if error.errno in FORBIDDEN:
        owner = path
        while not os.path.lexists(owner) and owner != owner.parent:
            owner = owner.parent
        return TargetUnusable(message, hint=f"see whose it is, and its mode: ls -ld {owner}")
    return FilesystemFailed(message)
