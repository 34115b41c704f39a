"""How an errno of a filesystem becomes an error of ours."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from cargo_cow.errors import CowError, FilesystemFailed, NoSpace, TargetUnusable

if TYPE_CHECKING:
    from pathlib import Path

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
UNSUPPORTED = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""What a kernel answers to an ioctl or a flag that this filesystem does not know."""


def failure(error: OSError, doing: str, path: Path) -> CowError:
    """``error``, met while ``doing`` something with ``path``, as the class its cause deserves."""
    message = f"{doing} {path}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in NO_SPACE:
        return NoSpace(message)
    if error.errno in FORBIDDEN:
        return TargetUnusable(message)
    return FilesystemFailed(message)
