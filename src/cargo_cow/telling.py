"""Lines for people: who does something says them to whoever asked for it, who shows them or not."""

from __future__ import annotations


def silent(_: str) -> None:
    """Where nobody listens."""
    return
