"""`rankloom base`: what a base model is, and whether an adapter belongs to it."""

from __future__ import annotations

from dataclasses import asdict
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

base = typer.Typer(no_args_is_help=True, help="Base models.")
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Folder, .gguf file or hub id.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(base, name="base")


@base.command("fingerprint")
def fingerprint(path: PathArgument, as_json: JsonOption = False) -> None:
    """Say what a base is: hashes of its weights, structure, tokenizer and chat template."""
    from rankloom.models import resolve_base
    from rankloom_registry import fingerprint_base

    found = resolve_base(path)
    with progress_bars() as advance:
        result = fingerprint_base(
            found.path, identity=found.identity, progress=lambda done, total: advance("hashing (bytes)", done, total)
        )
    values = asdict(result)
    if as_json:
        show_json(values)
        return
    show_pairs([(name, value) for name, value in values.items() if name != "config"])


@base.command("check")
def check(
    ref: RefArgument, path: PathArgument, registry: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False
) -> None:
    """Check whether an adapter belongs to a base; exits 1 when it does not."""
    from rankloom.promote import check_base

    found = check_base(open_registry(registry), ref, path)
    if as_json:
        show_json(found)
    elif found["belongs"]:
        output().print(f"{found['adapter_id']} belongs to {found['path']}", highlight=False, soft_wrap=True)
    else:
        output().print(
            f"{found['adapter_id']} does not belong to {found['path']}: its base has content root "
            f"{found['expected_content_root'][:16]}…, this one {found['content_root'][:16]}…",
            highlight=False,
            soft_wrap=True,
        )
    if not found["belongs"]:
        raise typer.Exit(1)
