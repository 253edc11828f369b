"""`rankloom adapters`: the registry from the command line."""

from __future__ import annotations

import typer

from rankloom.cli.adapters import browsing, comparing, curating, exchanging
from rankloom.cli.adapters.browsing import RefArgument

__all__ = ["RefArgument", "register"]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    adapters = typer.Typer(no_args_is_help=True, help="The adapters in the registry.")
    for module in (browsing, comparing, curating, exchanging):
        module.register(adapters)
    app.add_typer(adapters, name="adapters")
