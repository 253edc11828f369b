"""`rankloom evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from rankloom.cli.adapters import RefArgument
from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    open_registry,
    progress_bars,
    show_json,
    show_pairs,
)
from rankloom.cli.signing import IdentityOption, IssuerOption, PublicKeyOption, verifier_of

BaseOption = Annotated[str | None, typer.Option("--base", help="Where the base is now, if it moved.")]
DatasetOption = Annotated[
    str | None, typer.Option(help="Rows to measure on; by default the held-out split of the adapter's search.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


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
