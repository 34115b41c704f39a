"""Commands in sandbox mode: prepare inside, the command inside, capture inside.

Three entries into the same view, of which the first and the last are left out where a few stats
from outside tell that nothing changed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cargo_cow import sandbox
from cargo_cow.cargo.target import profile_directories
from cargo_cow.cargo.workspace import Workspace, cargo_program, load
from cargo_cow.cli import passthrough
from cargo_cow.errors import SandboxRefused
from cargo_cow.prepare import unchanged
from cargo_cow.prepare.place import Place, place_of

NO_NETWORK = "--no-network"
READ_ONLY_HOME = "--read-only-home"


def run_cargo(verb: str, arguments: Sequence[str], *, prepared: bool) -> int:
    """``cargo cow VERB --sandbox ARGUMENTS``; returns Cargo's exit status."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    ours = {passthrough.SANDBOX, NO_NETWORK, READ_ONLY_HOME}
    given = ours.intersection(arguments[:end])
    rest = [word for word in arguments[:end] if word not in ours] + list(arguments[end:])
    if sandbox.inside() is not None:
        return passthrough.run([verb, *rest])
    workspace = load(Path.cwd(), rest)
    view = sandbox.plan(
        workspace,
        os.path.realpath(Path.cwd()),
        network=NO_NETWORK not in given,
        read_only_home=READ_ONLY_HOME in given,
    )
    command = [cargo_program(), verb, *view.arguments(rest)]
    return run(workspace, view, command, prepared=prepared)


def run(
    workspace: Workspace,
    view: sandbox.View,
    command: Sequence[str],
    *,
    method: sandbox.Method = "auto",
    prepared: bool = True,
) -> int:
    """Run ``command`` in the view on a prepared target; returns its exit status.

    Raises SandboxRefused where the view cannot be had, or the target cannot be prepared for it:
    what was built at another path would then pass for what is built here.
    """
    if not prepared:
        return sandbox.run(view, command, method=method)
    place = place_of(workspace)
    inside = view.workspace(workspace)
    place = place._replace(
        checkout=view.at(place.checkout),
        workspace=view.at(place.workspace),
        build_dir=view.at(place.build_dir),
    )
    noted = unchanged.holds(place, view.real)
    if not noted:
        _prepare(workspace, inside, place, view, method)
    began = time.time_ns()
    status = sandbox.run(view, command, method=method)
    if not (noted and unchanged.holds(place, view.real)):
        _work("capture", inside, view, method, str(began))
        passthrough.tidy(workspace)
    return status


def _prepare(
    workspace: Workspace,
    inside: Workspace,
    place: Place,
    view: sandbox.View,
    method: sandbox.Method,
) -> None:
    real = os.path.realpath(workspace.build_dir)
    built = bool(profile_directories(real))
    if built and not unchanged.is_of(place, real):
        # What was built outside can be recorded only as seen from there.
        from cargo_cow import prepare

        prepare.capture_of(workspace)
    if not built and real in dict(view.targets):
        # Over a target that is bound no clone can be put.
        inside = inside._replace(standing=Path(real))
    if _work("prepare", inside, view, method) != 0:
        raise SandboxRefused(
            "the target could not be prepared for sandbox mode, so nothing was run",
            hint="mend what is said above, or build without --sandbox",
        )


def _work(
    verb: str,
    inside: Workspace,
    view: sandbox.View,
    method: sandbox.Method,
    *words: str,
) -> int:
    from cargo_cow.cli.inside import encode

    # A file that only a descriptor names: nothing is left of it, whoever is killed.
    descriptor = os.memfd_create("workspace", 0)
    try:
        os.write(descriptor, encode(inside))
        command = [sys.executable, "-P", "-m", "cargo_cow.cli.inside", verb]
        command += [f"/proc/self/fd/{descriptor}", *words]
        left_out = {real for real, _ in view.targets} if inside.standing else set()
        return sandbox.run(view, command, method=method, own_work=True, left_out=left_out)
    finally:
        os.close(descriptor)
