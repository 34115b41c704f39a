"""What the warehouse's commands share: which store they are about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cargo_cow.cli import render

if TYPE_CHECKING:
    from collections.abc import Callable

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def store_option(function: _Function) -> _Function:
    """``--store``; the parameter is called ``named``."""
    return click.option(
        "--store", "named", metavar="DIRECTORY", help="The store, if not the one builds here use."
    )(function)


def found(cwd: Path, named: str | None, manifest_path: str | None) -> Path:
    """The store that is meant.  Raises WarehouseMissing, WarehouseUnusable."""
    from cargo_cow.cargo.workspace import load
    from cargo_cow.errors import NotACargoProject
    from cargo_cow.warehouse import store

    workspace = None
    if named is None:
        try:
            workspace = load(cwd, render.cargo_arguments(manifest_path))
        except NotACargoProject:
            if manifest_path is not None:
                raise
    return store.locate(workspace, cwd, named)
