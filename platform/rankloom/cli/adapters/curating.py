"""`rankloom adapters tag`, `alias` and `delete`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rankloom.cli.adapters.browsing import RefArgument
from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    errors,
    open_registry,
    output,
    show_json,
    show_pairs,
)

ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the log.")]


def register(adapters: typer.Typer) -> None:
    """Add these commands."""
    adapters.command("tag")(tag_adapter)
    adapters.command("alias")(alias_adapter)
    adapters.command("delete")(delete_adapters)


def tag_adapter(
    ref: RefArgument,
    tags: Annotated[list[str] | None, typer.Argument(metavar="[TAG]…", help="Tags to add.", show_default=False)] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", metavar="TAG", help="A tag to remove.")] = None,
    note: Annotated[str | None, typer.Option(help="A note in place of the one it has; '' for none.")] = None,
    name: Annotated[str | None, typer.Option(help="Another name; its aliases stay under the old one.")] = None,
    reason: ReasonOption = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Tag an adapter, or give it a note or another name; without any of them, show what it has."""
    from rankloom_registry import AdapterAnnotated

    opened = open_registry(registry)
    adapter = opened.adapter(ref)
    if tags or remove or note is not None or name is not None:
        opened.record(
            AdapterAnnotated(
                adapter_id=adapter.adapter_id,
                name=name,
                note=note,
                tags_added=tuple(tags or ()),
                tags_removed=tuple(remove or ()),
                why=reason,
            )
        )
        adapter = opened.adapter(adapter.adapter_id)
    if as_json:
        show_json(adapter)
        return
    show_pairs([(field, getattr(adapter, field)) for field in ("adapter_id", "name", "tags", "note")])


def alias_adapter(
    ref: RefArgument,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as prod or candidate.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away from this adapter.")] = False,
    reason: ReasonOption = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Let name@ALIAS mean this adapter from now on, whatever it meant before."""
    from rankloom_registry import move_alias, remove_alias

    opened = open_registry(registry)
    moves = remove_alias(opened, ref, alias, why=reason) if remove else [move_alias(opened, ref, alias, why=reason)]
    if as_json:
        show_json(moves)
        return
    for move in moves:
        arrow = f"{move.previous or 'nothing'} → {move.adapter_id or 'nothing'}"
        output().print(f"{move.name}@{move.alias}: {arrow}", markup=False, highlight=False, soft_wrap=True)


def delete_adapters(
    refs: Annotated[list[str], typer.Argument(metavar="ADAPTER…", help="One adapter or more.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even what an alias means; the alias goes, too.")] = False,
    reason: ReasonOption = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Discard adapters: what is known of them stays, their files go with the next `rankloom registry gc`."""
    from rankloom_registry import discard

    opened = open_registry(registry)
    ids = [opened.adapter(ref).adapter_id for ref in refs]
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("nobody can be asked here; give --yes", param_hint="--yes")
        if not typer.confirm(f"discard {', '.join(ids)}?", err=True):
            errors().print("nothing was discarded")
            raise typer.Exit(1)
    gone = discard(opened, ids, reason=reason, force=force)
    if as_json:
        show_json([opened.adapter(adapter.adapter_id) for adapter in gone])
        return
    for adapter in gone:
        output().print(f"{adapter.adapter_id} ({adapter.name}) is discarded", markup=False, highlight=False)
