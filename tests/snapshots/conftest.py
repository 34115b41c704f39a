"""What the tests of states share: one small package on a filesystem that shares extents."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.states import TINY, built, project


@pytest.fixture(params=["btrfs", "xfs"])
def sharing(request: pytest.FixtureRequest) -> Path:
    """A directory on each filesystem that shares extents."""
    directory = request.getfixturevalue(request.param)
    assert isinstance(directory, Path)
    return directory


@pytest.fixture
def tiny(btrfs: Path, tmp_path: Path) -> Path:
    """One package on Btrfs, its target a subvolume, built."""
    return built(project(btrfs / "main", TINY), tmp_path)


@pytest.fixture
def tiny_any(sharing: Path, tmp_path: Path) -> Path:
    """The same on each filesystem that shares extents."""
    return built(project(sharing / "main", TINY), tmp_path)
