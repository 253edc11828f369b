"""`rankloom adapters list`, `show` and `verify`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    errors,
    open_registry,
    output,
    progress_bars,
    show_json,
    show_pairs,
    show_table,
)
from rankloom.cli.signing import IdentityOption, IssuerOption, PublicKeyOption, verifier_of
from rankloom_registry import Adapter, ArtifactError, Registry, SignatureError

RefArgument = Annotated[str, typer.Argument(metavar="ADAPTER", help="Id, name, or name@alias.")]
COLUMNS = ("adapter_id", "name", "status", "eval_loss", "steps", "r", "lora_alpha", "learning_rate", "target_modules")
# Figures that an imported adapter may lack; a line without one says nothing.
OPTIONAL = ("tags", "note", "effective_rank", "update_norm")


def register(adapters: typer.Typer) -> None:
    """Add these commands."""
    adapters.command("list")(list_adapters)
    adapters.command("show")(show_adapter)
    adapters.command("verify")(verify_adapters)


def list_adapters(
    where: Annotated[str | None, typer.Option(help="Such as 'eval_loss < 2 and r <= 16'.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only adapters with this tag.")] = None,
    order_by: Annotated[str | None, typer.Option(help="Such as 'eval_loss' or 'created_at desc'.")] = "eval_loss",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many.")] = 50,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """List adapters, the best first."""
    found = open_registry(registry).adapters(where=where, order_by=order_by, limit=limit, tag=tag)
    if as_json:
        show_json(found)
        return
    show_table(COLUMNS, [tuple(getattr(adapter, name) for name in COLUMNS) for adapter in found])


def show_adapter(ref: RefArgument, registry: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False) -> None:
    """Show an adapter: configuration, learning curve, where it came from, what became of it, and its log."""
    opened = open_registry(registry)
    lineage = opened.lineage(ref)
    adapter = lineage.adapter
    curve = opened.step_metrics(adapter.trial_id) if adapter.trial_id else []
    if as_json:
        details: dict[str, Any] = {name: getattr(lineage, name) for name in lineage.__dataclass_fields__}
        show_json(details | {"curve": curve})
        return
    values = {name: getattr(adapter, name) for name in adapter.__dataclass_fields__ if name != "params"}
    show_pairs([(name, value) for name, value in values.items() if value or name not in OPTIONAL])
    if curve:
        show_table(
            ("step", "train_loss", "eval_loss", "learning_rate", "grad_norm"),
            [(at.step, at.train_loss, at.eval_loss, at.learning_rate, at.grad_norm) for at in curve],
            title="\nlearning curve",
        )
    show_table(
        ("at", "step", "id", "what"),
        [(at, what, id_, text) for at, what, id_, text in lineage.steps()],
        title="\nlineage",
    )
    for promotion in lineage.promotions:
        show_pairs([("promotion", promotion.promotion_id), ("checks", promotion.checks)])
    show_table(
        ("at", "who", "event", "why"),
        [(event.at, event.who, event.kind, event.why or None) for event in reversed(lineage.events)],
        title="\nlog",
    )


def verify_adapters(
    refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ADAPTER]…", help="Id, name, or name@alias; by default all.", show_default=False),
    ] = None,
    public_key: PublicKeyOption = None,
    identity: IdentityOption = None,
    oidc_issuer: IssuerOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Hash adapters' files again; exits 1 and names what changed if they are not what was registered or signed."""
    verifier = verifier_of(public_key, identity, oidc_issuer)
    opened = open_registry(registry, verifier)
    adapters = [opened.adapter(ref) for ref in refs] if refs else opened.adapters(where="status = 'available'")
    found: list[tuple[Adapter, str | None]] = []
    with progress_bars() as advance:
        for adapter in adapters:
            advance("hashing", len(found), len(adapters))
            found.append((adapter, _problem(opened, adapter)))
    if not found:
        errors().print("there is no adapter with files", style="yellow")
    whole = not any(problem for _, problem in found)
    if as_json:
        verdicts = [
            {
                "adapter_id": adapter.adapter_id,
                "name": adapter.name,
                "artifact_sha256": adapter.artifact_sha256,
                "verified": problem is None,
                "problem": problem,
            }
            for adapter, problem in found
        ]
        show_json({"verified": whole, "adapters": verdicts})
    for adapter, problem in found:
        if problem:
            text = f"error: {adapter.adapter_id} ({adapter.name}): {problem}"
            errors().print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        elif not as_json:
            signed = " and signed" if verifier else ""
            output().print(f"{adapter.adapter_id}: every file is what was registered{signed}", highlight=False)
    if not whole:
        raise typer.Exit(1)


def _problem(registry: Registry, adapter: Adapter) -> str | None:
    try:
        registry.verify(adapter)
    except (ArtifactError, SignatureError) as error:
        return str(error)
    return None
