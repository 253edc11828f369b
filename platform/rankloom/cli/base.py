"""`rankloom base`: what a base model is, and whether an adapter belongs to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankloom.cli.adapters import RefArgument
from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    byte_bars,
    open_registry,
    output,
    show_json,
    show_pairs,
    show_table,
)

if TYPE_CHECKING:
    from rankloom.belongs import BaseCheck

base = typer.Typer(no_args_is_help=True, help="Base models.")
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Folder, .safetensors or .gguf file, or hub id.")]
AsStoredOption = Annotated[
    bool, typer.Option("--as-stored", help="Of a .gguf file, its own quantized tensors instead of what they stand for.")
]
SHOWN = 20  # changed tensors; a base that was trained on differs in all of them


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(base, name="base")


@base.command("fingerprint")
def fingerprint(path: PathArgument, as_stored: AsStoredOption = False, as_json: JsonOption = False) -> None:
    """Say what a base is: hashes of its weights, structure, tokenizer, chat template and quantization."""
    from rankloom.belongs import find_base
    from rankloom_registry import fingerprint_base

    local = Path(path).expanduser()
    stored = as_stored and local.suffix == ".gguf" and local.is_file()
    # A search trains on the dequantized weights of a .gguf file: its adapters belong to those.
    found = None if stored else find_base(path)
    with byte_bars() as advance:
        result = fingerprint_base(
            local if found is None else found.path,
            identity=None if found is None else found.identity,
            progress=lambda done, total: advance("hashing", done, total),
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
    """Check whether an adapter belongs to a base, and name the tensors that differ; exits 1 when it does not."""
    from rankloom.belongs import check_base

    opened = open_registry(registry)
    with byte_bars() as advance:
        found = check_base(opened, ref, path, progress=lambda done, total: advance("hashing", done, total))
    if as_json:
        show_json(found.to_dict())
    else:
        _show(found)
    if not found.belongs:
        raise typer.Exit(1)


def _show(found: BaseCheck) -> None:
    if found.belongs:
        _say(f"{found.adapter_id} belongs to {found.path}")
    else:
        _say(
            f"{found.adapter_id} does not belong to {found.path}: its base has content root "
            f"{found.expected_content_root[:16]}…, this one {found.content_root[:16]}…"
        )
    if found.tensors:
        kinds = Counter(tensor.change for tensor in found.tensors)
        rows = [(tensor.name, tensor.change, tensor.touched) for tensor in found.tensors[:SHOWN]]
        show_table(["tensor", "change", "the adapter modifies it"], rows)
        if len(found.tensors) > SHOWN:
            _say(f"… and {len(found.tensors) - SHOWN} more; --json names them all")
        _say("tensors: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    if not found.tensors_known:
        _say(f"Which tensors differ is not known: {found.touched_unknown}")
    elif found.touched is None:
        _say(f"Which tensors the adapter modifies is not known: {found.touched_unknown}")
    elif not found.belongs:
        state = "all as they were recorded" if found.touched_root_agrees else "not all as they were recorded"
        _say(f"The adapter modifies {found.touched} tensors: they are {state}.")
    if found.other_differences:
        _say(f"Not as they were recorded, either: {', '.join(found.other_differences)}")


def _say(text: str) -> None:
    output().print(text, highlight=False, soft_wrap=True, markup=False)
