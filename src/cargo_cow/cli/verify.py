"""``cargo cow verify``: is what the warehouse keeps what was put there, and what rustc makes?"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cargo_cow.cli import render
from cargo_cow.cli.warehouse import found, store_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cargo_cow.warehouse.recompiling import Outcome
    from cargo_cow.warehouse.store import Entry

_WRONG = ("differs", "failed")


@click.command("verify")
@click.argument("crates", nargs=-1, metavar="[CRATE]...")
@click.option("--remove", is_flag=True, help="Take damaged entries out.")
@click.option("--recompile", is_flag=True, help="Compile entries again, too, and compare.")
@click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="Compile N of them, by chance."
)
@click.option("--seed", type=int, help="The same sample as then (it is told).")
@store_option
@render.manifest_option
@render.format_option
def command(
    *,
    crates: tuple[str, ...],
    remove: bool,
    recompile: bool,
    sample: int | None,
    seed: int | None,
    named: str | None,
    manifest_path: str | None,
    style: str,
) -> int:
    """Read all entries of the warehouse (or those of CRATE) and compare them with their digests.

    Builds do that by themselves where it is in doubt (after a boot, or when a file is not the one
    that was seen whole), and compile what is damaged; this looks at everything.

    With --recompile, or --sample, entries are compiled again as they were then, aside, and the
    bytes compared. That can be done where the compiler, the sources and everything below the unit
    are still there and what they were; of the others the reason is told.  What differs between two
    compiles in a row (a macro that tells the time, say) proves nothing, and is told apart; so is
    what was compiled with incremental state.

    Exit status: 0 if all entries are whole, and those compiled again the same; else 1.

    \b
    Examples:
      cargo cow verify
      cargo cow verify --remove
      cargo cow verify --sample 20
      cargo cow verify --recompile serde
    """
    from cargo_cow.warehouse import store

    root = found(Path.cwd(), named, manifest_path)
    kept = store.entries(root)
    if crates:
        kept = [entry for entry in kept if entry.crate in crates or _package(entry) in crates]
    bad = [(entry, why) for entry in kept if (why := store.damage(entry)) is not None]
    gone = {entry.path for entry, _ in bad if remove and store.remove(root, entry)}
    outcomes: list[Outcome] | None = None
    if recompile or sample is not None:
        damaged = {entry.path for entry, _ in bad}
        whole = [entry for entry in kept if entry.path not in damaged]
        if sample is not None:
            seed = random.randrange(1 << 32) if seed is None else seed
        outcomes = _compile(root, whole, sample, seed)
    if style == "json":
        value: dict[str, Any] = {
            **render.json_path("store", root),
            "entries": len(kept),
            "damaged": [
                {
                    **render.json_path("path", entry.path),
                    "crate": entry.crate,
                    "trouble": why,
                    "removed": entry.path in gone,
                }
                for entry, why in bad
            ],
        }
        if outcomes is not None:
            value |= {
                "seed": seed,
                "recompiled": [
                    {
                        **render.json_path("path", one.entry.path),
                        "crate": one.entry.crate,
                        "package": one.entry.package,
                        "verdict": one.verdict,
                        "why": one.why,
                        "seconds": one.seconds,
                    }
                    for one in outcomes
                ],
            }
        render.print_json(value)
    else:
        for entry, why in bad:
            removed = " (removed)" if entry.path in gone else ""
            click.echo(f"{render.shown(entry.path)}: {entry.crate}: {why}{removed}")
        click.echo(f"{len(kept)} entries: {len(bad)} damaged")
        if outcomes is not None:
            _tell(outcomes, seed)
    if bad and not remove:
        render.say("builds compile these again: cargo cow verify --remove takes them out")
    wrong = [one for one in outcomes or () if one.verdict in _WRONG]
    return 1 if bad or wrong else 0


def _package(entry: Entry) -> str:
    return entry.package.partition(" ")[0]


def _compile(
    root: Path, entries: Sequence[Entry], sample: int | None, seed: int | None
) -> list[Outcome]:
    """Compile again what can be, or ``sample`` of it; first what cannot, and why."""
    from cargo_cow.warehouse import recompiling

    planned = recompiling.plan(root, entries)
    trials = sorted(planned.trials, key=lambda trial: trial.entry.path)
    if sample is not None and sample < len(trials):
        trials = random.Random(seed).sample(trials, sample)
    outcomes = list(planned.refused)
    for number, trial in enumerate(trials, 1):
        render.say(f"{number}/{len(trials)} {trial.entry.package} ({trial.entry.crate})")
        outcomes.append(recompiling.compile_again(root, trial))
    return outcomes


def _tell(outcomes: Sequence[Outcome], seed: int | None) -> None:
    refused = Counter(one.why for one in outcomes if one.verdict == "not-tried")
    for one in outcomes:
        if one.verdict not in ("same", "not-tried"):
            click.echo(f"{render.shown(one.entry.path)}: {one.entry.package} ({one.entry.crate})")
            click.echo(f"    {one.verdict.replace('-', ' ')}: {one.why}")
    for why, number in refused.most_common():
        click.echo(f"{number} not tried: {why}")
    count: Counter[str] = Counter(one.verdict for one in outcomes)
    tried = len(outcomes) - count["not-tried"]
    seconds = sum(one.seconds for one in outcomes)
    told = ", ".join(
        f"{count[verdict]} {words}"
        for verdict, words in (
            ("same", "the same"),
            ("differs", "differ"),
            ("not-repeatable", "are not repeatable"),
            ("failed", "do not compile"),
        )
        if count[verdict] or verdict in ("same", "differs")
    )
    sampled = "" if seed is None else f" (--seed {seed})"
    click.echo(f"{tried} compiled again in {seconds:.1f} s{sampled}: {told}")
