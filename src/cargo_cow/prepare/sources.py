"""Targets that a target can be made from: other checkouts' live ones, and states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """A target of the project that units can be taken from, or that can be cloned.

    ``origin`` is what people know it by: the checkout, or the state's directory.  ``taken`` (ns) is
    when a state began to be what it is; None for a live target, which changes.  ``commit`` and
    ``compiler`` are those it was built at and by, as far as known.  ``builds`` are the builds that
    are known to be in it (None: look).  ``copied``: it came by a full copy, so who has it has asked
    for copies.
    """

    target: Path
    origin: Path
    taken: int | None = None
    commit: str | None = None
    compiler: str | None = None
    baseline: bool = False
    builds: Mapping[str, int] | None = None
    copied: bool = False
