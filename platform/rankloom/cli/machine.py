"""`rankloom doctor` and `rankloom dashboard`."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer

from rankloom.cli.output import DEFAULT_REGISTRY, JsonOption, RegistryOption, show_json, show_table
from rankloom.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(doctor)
    app.command()(dashboard)


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine can do, and what to fix; exits 1 when a search cannot run here."""
    from rankloom.doctor import diagnose

    findings = diagnose()
    if as_json:
        show_json([finding.to_dict() for finding in findings])
    else:
        show_table(("", "check", "found", "fix"), [(f.state, f.check, f.found, f.fix or None) for f in findings])
    if any(finding.state == "error" for finding in findings):
        raise typer.Exit(1)


def dashboard(
    registry: RegistryOption = DEFAULT_REGISTRY,
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port on 127.0.0.1.")] = 8501,
    headless: Annotated[bool, typer.Option("--headless", help="Leave the web browser closed.")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Let its pages change the registry; by default they only show it.")
    ] = False,
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", metavar="KEY.pub", help="Let its pages verify that this key signed the files."),
    ] = None,
) -> None:
    """Open the dashboard on 127.0.0.1."""
    # An entry point, because the dashboard stands on the floor above and imports this package, never the reverse.
    found = importlib.metadata.entry_points(group="rankloom.dashboard", name="launch")
    if not found:
        raise ConfigError("the dashboard is not installed with this rankloom: install the package again")
    launch = next(iter(found)).load()
    code = launch(
        registry.expanduser().absolute(),
        port,
        headless=headless,
        allow_changes=allow_changes,
        public_key=public_key and public_key.expanduser(),
    )
    raise typer.Exit(code)
