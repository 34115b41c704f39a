"""``python -m tests.oracle``: hunts for wrong results, or plays one history again.

    python -m tests.oracle DIRECTORY --seconds 600 --seed 1    random histories from this seed on
    python -m tests.oracle DIRECTORY --switching               the same, of branch switches
    python -m tests.oracle DIRECTORY --sharing                 two users with one warehouse
    python -m tests.oracle DIRECTORY --replay corpus/x.json    one history
    python -m tests.oracle DIRECTORY --replay x.json --shrink 300

DIRECTORY lies on the filesystem to be tried; all that is made in it is removed.
"""

from __future__ import annotations

import argparse
import time
import traceback
from pathlib import Path

from . import sharing
from .histories import History, World, draw, played, report, smallest
from .tools import TOOLS, Tool


def _show(history: History, place: Path, tool: Tool, shrinking: float) -> World | None:
    """Plays a history, prints what it finds, and the smallest one that still finds it."""
    try:
        world = played(place, history, tool)
    except Exception:  # noqa: BLE001 - a hunt goes on; the history is printed to be repeated
        print(f"{traceback.format_exc()}\n{history.to_json()}", flush=True)
        return None
    if world.findings:
        print(report(history, world), flush=True)
        if shrinking:
            kind = world.findings[0].kind
            smaller = smallest(place, history, tool, kind, shrinking)
            print("smallest:", flush=True)
            again = played(place, smaller, tool)
            print(report(smaller, again), flush=True)
    return world


def _share(place: Path, seed: int, seconds: float, replay: Path | None) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        history = sharing.draw(seed)
        if replay is not None:
            end = 0
            history = sharing.Sharing.from_json(replay.read_text().strip().splitlines()[-1])
        started = time.monotonic()
        try:
            world = sharing.played(place, history)
        except Exception:  # noqa: BLE001 - a hunt goes on; the history is printed to be repeated
            print(f"{traceback.format_exc()}\n{history.to_json()}", flush=True)
        else:
            verdict = sharing.report(history, world) if world.findings else "as clean"
            took = time.monotonic() - started
            came = f"{world.hits} hits, {world.grafted} grafted"
            said = f"{world.builds} builds, {world.failed} failed, {came}, {took:.0f} s"
            print(f"{seed}: {said} {verdict}", flush=True)
        seed += 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tool", choices=sorted(TOOLS), default="cargo-cow")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--switching", action="store_true", help="histories of branch switches")
    parser.add_argument("--sharing", action="store_true", help="histories of one warehouse")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--shrink", type=float, default=0, metavar="SECONDS")
    given = parser.parse_args()
    tool = TOOLS[given.tool]
    place = given.directory / "world"
    if given.sharing:
        _share(place, given.seed, given.seconds, given.replay)
        return
    if given.replay is not None:
        history = History.from_json(given.replay.read_text().strip().splitlines()[-1])
        world = _show(history, place, tool(), given.shrink)
        found = world is None or bool(world.findings)
        print("\n".join(world.log) if world is not None and not found else "")
        raise SystemExit(found)
    end = time.monotonic() + given.seconds
    seed = given.seed
    while time.monotonic() < end:
        started = time.monotonic()
        world = _show(draw(seed, switching=given.switching), place, tool(), given.shrink)
        if world is not None:
            firsts = ", ".join(f"{first.fresh}+{first.dirty}" for first in world.firsts)
            took = time.monotonic() - started
            verdict = f"FOUND {world.findings[0].kind}" if world.findings else "as clean"
            said = f"{world.builds} builds, {world.failed} failed, {took:.0f} s [{firsts}]"
            print(f"{seed}: {said} {verdict}", flush=True)
        seed += 1


if __name__ == "__main__":
    main()
