"""What the machine must be able to do for a test."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

PROMISED = os.environ.get("CI") == "true"
"""Nothing that a test needs may be missing."""


def missing(reason: str) -> NoReturn:
    """End the test for want of a capability: skipped, but failed where it was promised."""
    if PROMISED:
        pytest.fail(f"promised under CI=true, but missing: {reason}")
    pytest.skip(reason)
