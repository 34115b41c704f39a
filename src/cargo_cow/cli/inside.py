"""Our own work inside sandbox mode: called by ``cli.sandboxed``, never by a user.

``python -m cargo_cow.cli.inside prepare|capture FILE [SINCE]``; FILE is the workspace as JSON.
Says what ``cargo cow build`` says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cargo_cow.cargo.workspace import Package, Workspace
from cargo_cow.cli import passthrough
from cargo_cow.prepare.place import place_of


def encode(workspace: Workspace) -> bytes:
    """FILE."""
    value = {
        "root": str(workspace.root),
        "target_dir": str(workspace.target_dir),
        "build_dir": str(workspace.build_dir),
        "members": [[name, version, str(root)] for name, version, root in workspace.members],
        "standing": None if workspace.standing is None else str(workspace.standing),
    }
    return json.dumps(value).encode()


def _decode(text: bytes) -> Workspace:
    value = json.loads(text)
    return Workspace(
        Path(value["root"]),
        Path(value["target_dir"]),
        Path(value["build_dir"]),
        tuple(Package(name, version, Path(root)) for name, version, root in value["members"]),
        standing=None if value["standing"] is None else Path(value["standing"]),
    )


def main(verb: str, file: str, since: str = "") -> int:
    """Prepare or capture at the fixed path; 0 if that went well.  ``since``: see `remember`."""
    workspace = _decode(Path(file).read_bytes())
    if verb == "prepare":
        return 0 if passthrough.make_fresh(workspace) else 1
    assert verb == "capture"
    began = int(since) if since else None
    return 0 if passthrough.remember(workspace, place_of(workspace), since=began) else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
