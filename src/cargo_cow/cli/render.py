"""How commands show what they found: one value for JSON, lines and tables for people.

Data goes to stdout, everything else to stderr.  Rich is imported only when a table is drawn on a
terminal; into a pipe go plain columns.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cargo_cow.filesystems import Usage
    from cargo_cow.worktrees import Prepared

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def format_option(function: _Function) -> _Function:
    """``--format text|json``, as every command takes it; the parameter is called ``style``."""
    return click.option(
        "--format",
        "style",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How the answer is written to stdout.",
    )(function)


def manifest_option(function: _Function) -> _Function:
    """``--manifest-path``, as Cargo's option of that name."""
    return click.option(
        "--manifest-path",
        metavar="PATH",
        help="The manifest, as Cargo's option of that name.",
    )(function)


def measuring_options(function: _Function) -> _Function:
    """``--scratch`` (``directory``), ``--filesystem`` and ``--args`` (``cargo_args``), as whatever
    measures in a scratch place takes them."""
    for option in (
        click.option(
            "--args",
            "cargo_args",
            default="--workspace --all-targets",
            show_default=True,
            help="Arguments of every cargo build.",
        ),
        click.option(
            "--filesystem",
            type=click.Choice(["btrfs", "xfs", "ext4"]),
            help="Make and mount an image with this filesystem (root).",
        ),
        click.option(
            "--scratch",
            "directory",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            help="Work in a new directory in this one (default: where files can be cloned).",
        ),
    ):
        function = option(function)
    return function


def cargo_arguments(manifest_path: str | None) -> list[str]:
    """The arguments that choose the workspace."""
    return [] if manifest_path is None else ["--manifest-path", manifest_path]


def say(message: str) -> None:
    """A line for people, on stderr."""
    print(f"cargo-cow: {message}", file=sys.stderr)


def print_json(value: object) -> None:
    """One JSON value on stdout."""
    click.echo(json.dumps(value))


def json_path(key: str, path: Path | str | None) -> dict[str, str | None]:
    """``{key: text}``, and ``<key>_base64`` beside it where the path is not UTF-8."""
    if path is None:
        return {key: None}
    raw = os.fsencode(path)
    try:
        return {key: raw.decode("utf-8")}
    except UnicodeDecodeError:
        import base64

        text = raw.decode("utf-8", "replace")
        return {key: text, f"{key}_base64": base64.b64encode(raw).decode("ascii")}


def shown(path: Path | str) -> str:
    """A path for people: what is not printable is escaped, so a line stays a line."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def human_bytes(count: int) -> str:
    """Decimal units, three digits: 0 B, 999 B, 1.57 GB."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def human_age(seconds: float) -> str:
    """ "3 minutes ago"; a time in the future (another clock) is "just now"."""
    if seconds < 60:
        return "just now"
    for size, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"


def usage_value(usage: Usage | None) -> dict[str, int | bool] | None:
    """Usage for JSON: bytes, and whether the filesystem could tell shared from exclusive."""
    return None if usage is None else dict(usage._asdict())


def prepared_value(prepared: Prepared | None) -> dict[str, Any] | None:
    """The last prepare for JSON; ``time`` in seconds since the epoch."""
    if prepared is None:
        return None
    return {
        **json_path("donor", prepared.donor),
        "time": prepared.time,
        "method": prepared.method,
        "proven": prepared.proven,
        "dropped": prepared.dropped,
    }


def prepared_line(prepared: Prepared | None, now: float) -> str:
    """The last prepare for people."""
    if prepared is None:
        return ""
    parts = []
    if prepared.donor is not None:
        parts.append(f"{prepared.method or 'clone'} of {shown(prepared.donor)}")
    elif prepared.method is not None:
        parts.append(prepared.method)
    if prepared.proven is not None and prepared.dropped is not None:
        parts.append(f"{prepared.proven} proven, {prepared.dropped} dropped")
    if prepared.time is not None:
        parts.append(human_age(now - prepared.time))
    return ", ".join(parts)


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> None:
    """A table on stdout; the columns in ``right`` are figures."""
    if not rows:
        return
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for index, header in enumerate(headers):
            drawn.add_column(
                header,
                justify="right" if index in right else "left",
                overflow="fold",
                no_wrap=index in right,
            )
        for row in rows:
            # Text, not str: a path may hold what rich would take for markup.
            drawn.add_row(*(Text(cell) for cell in row))
        Console(highlight=False).print(drawn)
        return
    widths = [max(len(row[index]) for row in (headers, *rows)) for index in range(len(headers))]
    for row in (headers, *rows):
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def fields(rows: Sequence[tuple[str, str]]) -> None:
    """Named values, one below the other; empty ones are left out."""
    width = max((len(name) for name, value in rows if value), default=0)
    for name, value in rows:
        if value:
            click.echo(f"{name.ljust(width)}  {value}")
