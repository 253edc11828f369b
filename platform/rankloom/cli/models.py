"""`rankloom evaluate` and `rankloom promote`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rankloom.cli.adapters import RefArgument
from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    open_registry,
    output,
    progress_bars,
    show_json,
    show_pairs,
)
from rankloom.cli.signing import (
    IdentityOption,
    IssuerOption,
    PublicKeyOption,
    SignKeyOption,
    SigstoreOption,
    signer_of,
    verifier_of,
)
from rankloom_registry.signing import SIGNATURE


class Format(StrEnum):
    """What a promotion writes."""

    safetensors = "safetensors"
    adapter = "adapter"


class Recipe(StrEnum):
    """How an adapter is merged."""

    full_precision = "full-precision"


BaseOption = Annotated[str | None, typer.Option("--base", help="Where the base is now, if it moved.")]
DatasetOption = Annotated[
    str | None, typer.Option(help="Rows to measure on; by default the held-out split of the adapter's search.")
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(evaluate)
    app.command()(promote)


def evaluate(
    ref: RefArgument,
    dataset: DatasetOption = None,
    base_too: Annotated[bool, typer.Option("--base-too", help="Measure the base alone as well.")] = False,
    base: BaseOption = None,
    public_key: PublicKeyOption = None,
    identity: IdentityOption = None,
    oidc_issuer: IssuerOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Measure an adapter on held-out data, on its own quantized base."""
    from rankloom.evaluate import evaluate_adapter
    from rankloom.hush import hush

    hush()

    opened = open_registry(registry, verifier_of(public_key, identity, oidc_issuer))
    with progress_bars() as advance:
        result = evaluate_adapter(opened, ref, dataset=dataset, base=base, base_too=base_too, on_batch=advance)
    values = result.to_dict()
    if as_json:
        show_json(values)
        return
    show_pairs([(name, value) for name, value in values.items() if value is not None])


def promote(
    ref: RefArgument,
    destination: Annotated[Path, typer.Option("--output", help="Folder to make.")],
    format: Annotated[Format, typer.Option(help="A merged model, or the adapter alone.")] = Format.safetensors,
    recipe: Annotated[Recipe, typer.Option(help="How to merge.")] = Recipe.full_precision,
    alias: Annotated[str | None, typer.Option(help="Alias that moves to this adapter after success.")] = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Override the loss check; needs --reason.")] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="How much the merged loss may lie above the adapter's, nats a token.")
    ] = None,
    dataset: DatasetOption = None,
    base: BaseOption = None,
    sign_key: SignKeyOption = None,
    sign_sigstore: SigstoreOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its full-precision base, measure what came out, and export it."""
    from rankloom.hush import hush
    from rankloom.promotion.promote import promote as run

    hush()

    signer = signer_of(sign_key, sign_sigstore)
    with progress_bars() as advance:
        made = run(
            open_registry(registry),
            ref,
            destination,
            format=format.value,
            base=base,
            dataset=dataset,
            alias=alias,
            reason=reason,
            force=force,
            tolerance=tolerance,
            signer=signer,
            on_progress=advance,
        )
    if as_json:
        show_json(made.to_dict())
        return
    show_pairs(
        [
            ("promoted", made.adapter_id),
            ("output", made.output),
            ("output_sha256", made.output_sha256),
            *([("signature", made.output / SIGNATURE)] if signer else []),
            *((name, value) for name, value in made.checks.items() if name.endswith("loss") or name == "delta"),
        ]
    )
    if format is Format.safetensors:
        output().print("\nload it with plain transformers:", style="bold")
        output().print(
            f"  AutoModelForCausalLM.from_pretrained({str(made.output)!r})",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
