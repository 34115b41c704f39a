"""Sandbox mode: a whole command at one fixed path, the same in every checkout of a project.

Cargo and everything it starts then see this checkout (and its target, where that lies elsewhere) at
that path.  So whatever a crate bakes (``CARGO_MANIFEST_DIR``, ``OUT_DIR``, ``CARGO_BIN_EXE_*``) is
the same in all checkouts, and no unit is dropped for it.
"""

from __future__ import annotations

from cargo_cow.sandbox.running import Method, run
from cargo_cow.sandbox.view import View, inside, plan

__all__ = ["Method", "View", "inside", "plan", "run"]
