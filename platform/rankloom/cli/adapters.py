"""`rankloom adapters`: the registry from the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    open_registry,
    output,
    show_json,
    show_pairs,
    show_table,
)

adapters = typer.Typer(no_args_is_help=True, help="The adapters in the registry.")
RefArgument = Annotated[str, typer.Argument(metavar="ADAPTER", help="Id, name, or name@alias.")]
COLUMNS = ("adapter_id", "name", "status", "eval_loss", "steps", "r", "lora_alpha", "learning_rate", "target_modules")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(adapters, name="adapters")


@adapters.command("list")
def list_adapters(
    where: Annotated[str | None, typer.Option(help="Such as 'eval_loss < 2 and r <= 16'.")] = None,
    order_by: Annotated[str | None, typer.Option(help="Such as 'eval_loss' or 'created_at desc'.")] = "eval_loss",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many.")] = 50,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """List adapters, the best first."""
    found = open_registry(registry).adapters(where=where, order_by=order_by, limit=limit)
    if as_json:
        show_json(found)
        return
    show_table(COLUMNS, [tuple(getattr(adapter, name) for name in COLUMNS) for adapter in found])


@adapters.command("show")
def show_adapter(ref: RefArgument, registry: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False) -> None:
    """Show an adapter: configuration, base, learning curve, evaluations, promotions."""
    opened = open_registry(registry)
    adapter = opened.adapter(ref)
    curve = opened.step_metrics(adapter.trial_id) if adapter.trial_id else []
    details: dict[str, Any] = {
        "adapter": adapter,
        "base": opened.base(adapter.base_content_root),
        "curve": curve,
        "evaluations": opened.evaluations(adapter.adapter_id),
        "promotions": opened.promotions(adapter.adapter_id),
    }
    if as_json:
        show_json(details)
        return
    fields = [name for name in adapter.__dataclass_fields__ if name != "params"]
    show_pairs([(name, getattr(adapter, name)) for name in fields])
    if curve:
        show_table(
            ("step", "train_loss", "eval_loss", "learning_rate", "grad_norm"),
            [(at.step, at.train_loss, at.eval_loss, at.learning_rate, at.grad_norm) for at in curve],
            title="learning curve",
        )
    for promotion in details["promotions"]:
        show_pairs([("promotion", promotion.status), ("output", promotion.output_path), ("checks", promotion.checks)])


@adapters.command("compare")
def compare_adapters(
    refs: Annotated[list[str], typer.Argument(metavar="ADAPTER ADAPTER…", help="Two or more adapters.")],
    every: Annotated[bool, typer.Option("--all", help="Equal values too.")] = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Compare adapters side by side: what differs in configuration and metrics."""
    if len(refs) < 2:
        raise typer.BadParameter("give two adapters or more", param_hint="ADAPTER")
    opened = open_registry(registry)
    found = [opened.adapter(ref) for ref in refs]
    rows = {
        name: [getattr(adapter, name) for adapter in found]
        for name in found[0].__dataclass_fields__
        if name not in ("params", "adapter_id", "artifact_path")
    }
    different = {name: values for name, values in rows.items() if any(value != values[0] for value in values)}
    if as_json:
        show_json({"adapters": found, "differences": different})
        return
    shown = rows if every else different
    show_table(("", *(adapter.adapter_id for adapter in found)), [(name, *values) for name, values in shown.items()])
    if len({adapter.base_content_root for adapter in found}) > 1:
        output().print("these adapters belong to different bases: their losses cannot be compared", style="yellow")


@adapters.command("verify")
def verify_adapter(ref: RefArgument, registry: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False) -> None:
    """Hash an adapter's files again and compare with what was registered."""
    opened = open_registry(registry)
    adapter = opened.adapter(ref)
    opened.verify(adapter)
    if as_json:
        show_json({"adapter_id": adapter.adapter_id, "verified": True, "artifact_sha256": adapter.artifact_sha256})
        return
    output().print(f"{adapter.adapter_id}: every file is what was registered", highlight=False)
