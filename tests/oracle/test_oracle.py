"""Never stale: what Cargo-CoW builds is what a clean build at that path would give.

The fast part tells every fixed story once, and one story on each filesystem and target layout.
The slow part tells all of them everywhere, and random ones for ``COW_ORACLE_SECONDS`` from
``COW_ORACLE_SEED`` on.  A failing history is printed as JSON; ``python -m tests.oracle`` plays and
shrinks it, and in ``corpus/`` it stays a test.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from . import observe, sharing
from .histories import History, World, draw, play, played, report, smallest
from .stories import BEYOND, STORIES, WHOLE, build, edit, edits_in_turn, worktree
from .tools import TOOLS, CargoCow, Tool
from .workspaces import small

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
FILESYSTEMS = ("btrfs", "xfs", "ext4")
LAYOUTS = ("legacy", "new")


@pytest.fixture(scope="module", autouse=True)
def _probe(missing: Callable[[str], NoReturn]) -> None:
    """PROBE: a private mount namespace, in which the yardstick is built."""
    argv = ["unshare", "--mount", "--propagation", "private", "true"]
    try:
        status, _, said = observe.run(argv, Path("/"), os.environ)
    except FileNotFoundError:
        status, said = 1, "unshare is not installed"
    if status != 0:
        missing(f"private mount namespaces: {said}")


@pytest.fixture
def filesystem(request: pytest.FixtureRequest) -> Path:
    """A directory on the filesystem that a test is parametrised with."""
    directory = request.getfixturevalue(request.param)
    assert isinstance(directory, Path)
    return directory


def _told(place: Path, history: History, tool: Tool) -> World:
    world = play(place / "world", history, tool)
    if world.findings:
        pytest.fail(report(history, world), pytrace=False)
    assert not world.failed, "a story whose sources do not compile shows nothing"
    return world


# --- stories ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STORIES)
def test_story(btrfs: Path, name: str) -> None:
    _told(btrfs, STORIES[name], CargoCow())


@pytest.mark.parametrize(
    ("filesystem", "layout"),
    [("btrfs", "legacy"), ("btrfs", "new"), ("xfs", "legacy"), ("ext4", "new")],
    indirect=["filesystem"],
)
def test_whole_story(filesystem: Path, layout: str) -> None:
    _told(filesystem, WHOLE._replace(layout=layout), CargoCow())


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("filesystem", FILESYSTEMS, indirect=True)
@pytest.mark.parametrize("name", STORIES)
def test_story_everywhere(filesystem: Path, layout: str, name: str) -> None:
    _told(filesystem, STORIES[name]._replace(layout=layout), CargoCow())


@pytest.mark.slow
def test_twenty_edits_in_turn(btrfs: Path) -> None:
    _told(btrfs, edits_in_turn(20), CargoCow())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus(btrfs: Path, path: Path) -> None:
    _told(btrfs, History.from_json(path.read_text()), CargoCow())


@pytest.mark.parametrize("tool", ["cargo-cow-own-place", "cargo-cow-now-and-then"])
@pytest.mark.parametrize("name", ["inside", "edits-in-turn", "baked-paths"])
def test_story_with_and_without_identities(btrfs: Path, name: str, tool: str) -> None:
    """With them is `test_story`; here without, and across changes between both."""
    _told(btrfs, STORIES[name], TOOLS[tool]())


def test_story_in_sandbox_mode(btrfs: Path) -> None:
    """One path for all checkouts: the yardstick is a clean build at that path."""
    world = _told(btrfs, STORIES["same-commit"], TOOLS["cargo-cow-sandbox"]())
    assert [first.dirty for first in world.firsts] == [0]
    assert world.firsts[0].fresh > 0


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ("cargo-cow-in-and-out", "other-branch"),
        *[
            pytest.param(tool, name, marks=pytest.mark.slow)
            for tool in ("cargo-cow-in-and-out", "cargo-cow-sandbox")
            for name in ("inside", "edits-in-turn", "baked-paths", "baked-unseen")
        ],
    ],
)
def test_story_in_and_out_of_sandbox_mode(btrfs: Path, tool: str, name: str) -> None:
    """Plain Cargo, which is blind to a change of place, has a twin for each."""
    _told(btrfs, STORIES[name], TOOLS[tool]())


def test_plain_builds_between_hooks(btrfs: Path) -> None:
    """What git's hooks call proven, plain Cargo believes."""
    world = _told(btrfs, STORIES["other-branch"], TOOLS["git-hooks"]())
    calls = (btrfs / "world/main/.git/oracle/calls").read_text()
    assert calls.count("hooks run post-checkout") >= 4, calls
    assert world.builds == 5


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ("shim-warehouse", "same-commit"),
        *[
            pytest.param(tool, name, marks=pytest.mark.slow)
            for tool in ("cargo-cow-warehouse", "shim-warehouse")
            for name in STORIES
        ],
    ],
)
def test_story_with_the_warehouse(btrfs: Path, tool: str, name: str) -> None:
    world = _told(btrfs, STORIES[name], TOOLS[tool]())
    home = btrfs / "world" / "home"
    kept = list(home.glob(".cache/cargo-cow/warehouse/units/*/*/*"))
    assert kept, "the warehouse was not used"
    assert world.log


def test_same_commit_compiles_nothing(btrfs: Path) -> None:
    """The oracle would be content with a tool that rebuilds all; this says that ours does not."""
    world = _told(btrfs, STORIES["same-commit"], CargoCow())
    assert [first.dirty for first in world.firsts] == [0]
    assert world.firsts[0].fresh > 0


def test_another_target_is_not_made_stale(btrfs: Path) -> None:
    """Times put back for one target may not hide an edit from another one of the checkout.

    The twin cannot tell: it sees the same sources with the same times.  So only a clean build
    counts here.
    """
    place = btrfs / "world"
    place.mkdir()
    world = World(place, History(small(script="declares_nothing"), ()), CargoCow())
    other = {"CARGO_TARGET_DIR": "other"}
    newest = {"do": "write", "at": "main", "path": "crates/one/NOTES", "text": "", "how": "future"}
    world.play([newest, build(), edit("one.value", 102)])
    plain = observe.observe(
        ["cargo", "build", "--message-format=json"],
        world.checkouts["main"],
        {**world.env, **other},
    )
    world.play([edit("one.value", 100), build()])
    again = observe.observe(
        ["cargo", "build", "--message-format=json"],
        world.checkouts["main"],
        {**world.env, **other},
    )
    program = f"run {world.checkouts['main']}/other/debug/app one.value"
    assert (plain.seen[program], again.seen[program]) == ('"102"', '"100"')


LIMITS = {
    "asks.mac.outside",
    "asks.mac.var",
    "asks.mac.config",
    "looks.mac.exists",
    "quiet.script.shared",
    "quiet.script.env",
    "ignored.script.ignored",
    "beside.script.input",
}


def test_known_limits_are_these(btrfs: Path) -> None:
    """What docs/correctness.md says is not covered, and no more than that."""
    world = play(btrfs / "world", BEYOND, CargoCow())
    wrong = {found.key.split(" ")[-1] for found in world.findings if found.key.startswith("run ")}
    assert wrong <= LIMITS
    assert wrong, "a limit that fell is told in docs/correctness.md"


# --- the oracle itself -----------------------------------------------------------------------


def test_plain_cargo_passes(btrfs: Path) -> None:
    world = _told(btrfs, STORIES["other-branch"], Tool())
    assert world.builds == 5


@pytest.mark.parametrize(
    ("tool", "story", "kinds"),
    [
        ("copy-and-touch", "other-branch", {"stale"}),
        ("copy-with-times", "older-checkout", {"stale"}),
        ("touch-in-place", "in-place", {"stale"}),
        ("restored-times", "baked-paths", {"foreign"}),
    ],
)
def test_wrong_tools_are_found_out(btrfs: Path, tool: str, story: str, kinds: set[str]) -> None:
    world = play(btrfs / "world", STORIES[story], TOOLS[tool]())
    assert kinds <= {found.kind for found in world.findings}, world.log


class _LeavesWork(Tool):
    """Makes a source newer than what was built from it, behind the build's back."""

    name = "leaves-work"

    def cargo(self) -> list[str]:
        touch = 'cargo "$@"; status=$?; touch crates/one/src/lib.rs; exit $status'
        return ["sh", "-c", touch, "sh"]


def test_needless_and_touched_are_found_out(btrfs: Path) -> None:
    history = History(small(), (build(),))
    world = play(btrfs / "world", history, _LeavesWork())
    assert {found.kind for found in world.findings} == {"needless", "touched"}


def test_hidden_input_has_no_excuse_in_a_new_worktree(btrfs: Path) -> None:
    """In place a hidden input may stay unseen, as plain Cargo leaves it; in a clone it may not."""
    unseen = (build(), edit("one.hidden", 102), build())
    fresh = (worktree("w1"), edit("one.hidden", 103, "w1"), build("w1"))
    history = History(small("macros"), (*unseen, *fresh))
    world = play(btrfs / "world", history, TOOLS["restored-times"]())
    assert {(found.kind, found.checkout) for found in world.findings} == {("stale", "w1")}


def test_failing_history_shrinks(btrfs: Path) -> None:
    steps = (build(), edit("one.note", 102), edit("one.value", 102), build())
    history = History(small("own_text"), steps)
    less = smallest(btrfs / "world", history, TOOLS["touch-in-place"](), "stale", 60)
    assert len(less.steps) == 3
    assert History.from_json(less.to_json()) == less


def test_a_seed_draws_one_history() -> None:
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


# --- random histories ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("filesystem", FILESYSTEMS, indirect=True)
def test_random_histories(filesystem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random histories for a quarter of ``COW_ORACLE_SECONDS`` on each filesystem."""
    seconds = float(os.environ.get("COW_ORACLE_SECONDS", "120")) / (len(FILESYSTEMS) + 1)
    seed = int(os.environ.get("COW_ORACLE_SEED") or time.time_ns() // 1_000_000)
    end = time.monotonic() + seconds
    place = filesystem / "world"
    while time.monotonic() < end:
        with capsys.disabled():
            print(f"\nCOW_ORACLE_SEED={seed}", end="", flush=True)
        history = draw(seed, switching=seed % 3 == 0)
        world = played(place, history, CargoCow())
        if world.findings:
            kind = world.findings[0].kind
            smaller = smallest(place, history, CargoCow(), kind, 300)
            again = played(place, smaller, CargoCow())
            told = [report(history, world), "smallest:", report(smaller, again)]
            pytest.fail("\n".join([f"seed {seed}", *told]), pytrace=False)
        seed += 1


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_random_sharing(btrfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two users with one warehouse, for the last quarter."""
    seconds = float(os.environ.get("COW_ORACLE_SECONDS", "120")) / (len(FILESYSTEMS) + 1)
    seed = int(os.environ.get("COW_ORACLE_SEED") or time.time_ns() // 1_000_000)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with capsys.disabled():
            print(f"\nCOW_ORACLE_SEED={seed}", end="", flush=True)
        history = sharing.draw(seed)
        world = sharing.played(btrfs / "world", history)
        if world.findings:
            pytest.fail(f"seed {seed}\n{sharing.report(history, world)}", pytrace=False)
        seed += 1


def test_a_store_that_tells_lies_is_found_out(btrfs: Path) -> None:
    """The judge of shared warehouses can fail: an entry with other outputs and fitting digests."""
    history = sharing.Sharing(small(), ({"do": "build", "user": "ann", "project": "one"},))
    world = sharing.play(btrfs / "world", history)
    assert not world.findings, sharing.report(history, world)
    sharing.lie(world.store, b"own", b"lie")
    world.play(history.steps)
    assert {found.kind for found in world.findings} == {"stale"}
