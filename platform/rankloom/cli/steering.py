"""`rankloom searches stop` and `extend`: telling a search that runs what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from rankloom.cli.output import DEFAULT_REGISTRY, JsonOption, RegistryOption, open_registry, output, show_json

SearchArgument = Annotated[str, typer.Argument(metavar="SEARCH", help="Id or name.", show_default=False)]


def register(searches: typer.Typer) -> None:
    """Add these commands to those of searches."""
    searches.command()(stop)
    searches.command()(extend)


def stop(
    search_ref: SearchArgument,
    trial: Annotated[
        int | None, typer.Option(min=0, help="Stop only the trial with this number.", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; it is recorded.", show_default=False)] = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Interrupt a search that runs, as Ctrl-C does, or stop one of its trials, as early stopping does."""
    from rankloom import control

    opened = open_registry(registry)
    found = opened.search(search_ref)
    if trial is None:
        control.stop_search(opened, found.search_id, why=reason)
    else:
        control.stop_trial(opened, found.search_id, trial, why=reason)
    if as_json:
        show_json({"search_id": found.search_id, "name": found.name, "trial": trial})
    elif trial is None:
        _say(f"{found.name} is being interrupted; go on with it by its own command and --resume")
    else:
        _say(f"trial {trial} of {found.name} is being stopped; its adapter is kept as it is now")


def extend(
    search_ref: SearchArgument,
    by: Annotated[int, typer.Option("--by", min=1, help="How many trials to add.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why; it is recorded.", show_default=False)] = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Let a search that runs try more configurations."""
    from rankloom import control

    opened = open_registry(registry)
    found = opened.search(search_ref)
    total = control.add_trials(opened, found.search_id, by, why=reason)
    if as_json:
        show_json({"search_id": found.search_id, "name": found.name, "num_samples": total})
    else:
        _say(f"{found.name} has {total} trials from now on")


def _say(text: str) -> None:
    output().print(text, markup=False, highlight=False, soft_wrap=True)
