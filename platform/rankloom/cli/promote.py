"""`rankloom promote`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rankloom.cli.adapters import RefArgument
from rankloom.cli.evaluate import BaseOption, DatasetOption
from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    open_registry,
    output,
    promotion_bars,
    show_json,
    show_pairs,
    show_table,
)
from rankloom.cli.signing import SignKeyOption, SigstoreOption, signer_of
from rankloom.merging import Recipe, Verify
from rankloom.promotion import Format
from rankloom_registry.signing import SIGNATURE


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(promote)


def promote(
    ref: RefArgument,
    destination: Annotated[Path | None, typer.Option("--output", help="Folder to make.")] = None,
    format: Annotated[
        Format, typer.Option(help="A merged model; the adapter alone; the model in 4 bits again; one for llama.cpp.")
    ] = "safetensors",
    recipe: Annotated[
        Recipe, typer.Option(help="What to merge into: the base itself, or the base as it was quantized in training.")
    ] = "full-precision",
    gguf_type: Annotated[
        str | None,
        typer.Option(help="Of a GGUF file: f32, bf16, f16, q8_0, q5_1, q4_1. For an adapter: a GGUF LoRA, too."),
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Alias that moves to this adapter after success.")] = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Override the drift check; needs --reason.")] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="How much the loss may lie above the adapter's, nats a token.")
    ] = None,
    verify: Annotated[Verify, typer.Option(help="Compute samples of the merged weights again, or all.")] = "sampled",
    compare: Annotated[bool, typer.Option(help="Measure the other recipe as well.")] = True,
    dataset: DatasetOption = None,
    base: BaseOption = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Upload the folder there, once it is recorded.")
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Give the alias that the last promotion moved back; nothing is removed.")
    ] = False,
    sign_key: SignKeyOption = None,
    sign_sigstore: SigstoreOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its full-precision base, check and measure what came out, and export it."""
    if undo:
        _undo(ref, reason, registry, as_json)
        return
    if destination is None:
        raise typer.BadParameter("name the folder to make", param_hint="--output")
    from rankloom.hush import hush
    from rankloom.promotion.promote import promote as run

    hush()

    signer = signer_of(sign_key, sign_sigstore)
    with promotion_bars() as advance:
        made = run(
            open_registry(registry),
            ref,
            destination,
            format=format,
            recipe=recipe,
            gguf_type=gguf_type,
            base=base,
            dataset=dataset,
            alias=alias,
            reason=reason,
            force=force,
            tolerance=tolerance,
            verify=verify,
            compare=compare,
            signer=signer,
            push_to_hub=push_to_hub,
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
            *([("alias", made.alias)] if made.alias else []),
            *([("on the hub", made.url)] if made.url else []),
        ]
    )
    if measured := made.checks.get("measured"):
        _show_measured(measured, made.checks["drift"])
    for engine, verdict in made.checks.get("serving", {}).items():
        notes = [*verdict["reasons"], *verdict["notes"]]
        if verdict["ok"] and verdict["needs_normalised"]:
            notes.insert(0, "give it the folder `normalised`")
        show_pairs(
            [(engine, ("can serve it" if verdict["ok"] else "cannot serve it") + "".join(f"; {n}" for n in notes))]
        )
    _show_how_to_load(made.output, format)


def _undo(ref: str, reason: str, registry: Path, as_json: bool) -> None:
    from rankloom_registry import undo_promotion

    undone, move = undo_promotion(open_registry(registry), ref, why=reason)
    values = {
        "undone": undone.promotion_id,
        "adapter": undone.adapter_id,
        "output": undone.output_path,
        "alias": undone.alias,
        "means_now": None if move is None else move.adapter_id,
    }
    if as_json:
        show_json(values)
        return
    show_pairs([(name, value) for name, value in values.items() if value is not None])


def _show_measured(measured: dict[str, Any], drift: dict[str, Any]) -> None:
    """Draw what was measured, the adapter as trained first."""
    from rankloom.promotion.labels import label

    for split, models in measured.items():
        rows = []
        for name, figures in models.items():
            if name == "rows":
                continue
            low, high = figures.get("low"), figures.get("high")
            rows.append(
                (
                    label(name),
                    figures["loss"],
                    figures.get("delta"),
                    None if low is None else f"{low:+.4f} … {high:+.4f}",
                    figures.get("kl"),
                    None if "top1" not in figures else f"{figures['top1']:.1%}",
                )
            )
        columns = ("model", "loss", "difference", "95% interval", "KL", "same top token")
        show_table(columns, rows, title=f"\n{split}, {models['rows']} rows, nats a token")
    text = f"{drift['verdict']}: tolerance {drift['tolerance']:.4g}"
    if not drift["certain"]:
        text += "; the interval reaches beyond it, so more held-out rows would make this surer"
    if drift["recommended"]:
        text += f"; recommended recipe: {drift['recommended']}"
    output().print(text, markup=False, highlight=False, soft_wrap=True)


def _show_how_to_load(folder: Path, format: Format) -> None:
    match format:
        case "gguf":
            how, line = "serve it:", f"ollama create NAME -f {folder / 'Modelfile'}"
        case "adapter":
            how, line = "load it on its base:", f"PeftModel.from_pretrained(base, {str(folder)!r})"
        case _:
            how, line = "load it with plain transformers:", f"AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    output().print(f"\n{how}", style="bold")
    output().print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
