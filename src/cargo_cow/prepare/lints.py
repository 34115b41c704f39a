"""What clippy goes by beside the sources: its configuration, which it looks for upwards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from cargo_cow.cargo.target import Unit
from cargo_cow.prepare.contents import MISSING

_NAMES = (".clippy.toml", "clippy.toml")
"""In clippy's order."""


def is_clippys(unit: Unit) -> bool:
    """Whether clippy made it: it names its arguments as a variable that it read
    (``track_clippy_args``)."""
    makefile = None if unit.is_script_run else unit.makefile()
    return makefile is not None and any(name == "CLIPPY_ARGS" for name, _ in makefile.env)


def other_configuration(
    package_root: str, cwd: str, variables: Mapping[str, str], read: Iterable[tuple[str, str]]
) -> str | None:
    """A configuration file that clippy would find for a package now and did not go by, or the
    other way round; None if it is the same.

    ``read`` are the unit's inputs, by path and digest: clippy names the one that it found among
    them (``track_files``).  ``cwd`` is where it runs.  Source: clippy's ``lookup_conf_file``, 1.95:
    the first directory upwards that has one, from ``CLIPPY_CONF_DIR`` or the package's.
    """
    then = {
        os.path.realpath(path)
        for path, digest in read
        if os.path.basename(path) in _NAMES and digest != MISSING
    }
    directory = os.path.realpath(
        os.path.join(cwd, variables.get("CLIPPY_CONF_DIR") or package_root)
    )
    while True:
        found = [
            os.path.realpath(f"{directory}/{name}")
            for name in _NAMES
            if os.path.isfile(f"{directory}/{name}")
        ]
        if len(found) > 1:
            # It warns of the second; whether it did then nobody knows.
            return found[1]
        if found:
            return None if found[0] in then else found[0]
        if directory == "/":
            return min(then, default=None)
        directory = os.path.dirname(directory)
