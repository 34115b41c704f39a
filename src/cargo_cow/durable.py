"""What has to be on the disk before something else is done."""

from __future__ import annotations

import errno
import os


def sync_directory(path: str | os.PathLike[str]) -> None:
    """The names in a directory, as they are now, survive a loss of power.  Raises OSError.

    Nothing happens where directories cannot be synced (EINVAL in fsync(2)).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
