"""Promotion: make a model of an adapter, see that it is the one that was trained, and only then let it out."""

from __future__ import annotations

import importlib.metadata
import json
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import rankloom.exports.hub as hub
from rankloom.errors import PromotionError
from rankloom.evaluation.base import search_settings
from rankloom.exports.adapter import export_adapter
from rankloom.exports.gguf import GGUF_LORA_TYPES, GGUF_TYPES, export_gguf_lora
from rankloom.exports.verdicts import verdicts
from rankloom.merging.merge import Recipe
from rankloom.models import BaseModel, split_identity
from rankloom.promotion.building import Build, Built, Format, Order, Verify
from rankloom.promotion.facts import card_of, versions
from rankloom.promotion.gates import prove_base
from rankloom.promotion.staging import let_out, output_folder, staged
from rankloom_registry import Adapter, AliasMoved, Promoted, Registry, validate_name
from rankloom_registry.files import write_atomically
from rankloom_registry.signing import Signer

MANIFEST = "rankloom.json"
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What a promotion made.

    Attributes:
        promotion_id: Its id in the registry.
        adapter_id: The adapter.
        format: 'safetensors' (merged), 'adapter', 'nf4' or 'gguf'.
        recipe: 'full-precision' or 'as-trained'.
        output: The folder.
        output_sha256: Hash over the names and hashes of its files.
        checks: The figures of its gates, and what was measured.
        alias: The `name@alias` that was moved, if one was.
        url: Where it was pushed to, if it was.
    """

    promotion_id: str
    adapter_id: str
    format: Format
    recipe: Recipe
    output: Path
    output_sha256: str
    checks: dict[str, Any]
    alias: str | None = None
    url: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the promotion as JSON-ready values."""
        return {**asdict(self), "output": str(self.output)}


def promote(
    registry: Registry,
    ref: str,
    output: Path,
    *,
    format: Format = "safetensors",
    recipe: Recipe = "full-precision",
    gguf_type: str | None = None,
    base: str | None = None,
    dataset: Any = None,
    alias: str | None = None,
    reason: str = "",
    force: bool = False,
    tolerance: float | None = None,
    verify: Verify = "sampled",
    compare: bool = True,
    signer: Signer | None = None,
    push_to_hub: str | None = None,
    on_progress: OnProgress | None = None,
) -> Promotion:
    """Merge, check, measure, export and record an adapter.

    Interrupted or killed, the same call goes on where it was.

    Args:
        registry: Where it is registered.
        ref: The adapter: id, name or name@alias.
        output: Folder to make.
        format: 'safetensors' is the merged model, 'nf4' that in 4 bits again, 'gguf' that for llama.cpp and Ollama;
            'adapter' is the PEFT folder alone.
        recipe: What to merge into: the 'full-precision' base, or that base 'as-trained', quantized and dequantized.
        gguf_type: Of a GGUF file's tensors, one of `exports.gguf.GGUF_TYPES`, 'q8_0' if not given. With the format
            'adapter' one of `GGUF_LORA_TYPES`: the folder then holds the adapter as a GGUF file, too.
        base: Where the base is now, if it moved.
        dataset: Rows to measure on; by default the held-out split of the adapter's search.
        alias: Alias of the adapter's name that moves to it after success.
        reason: Why, for the record.
        force: Let a model out that the last gate refuses; needs a reason.
        tolerance: How much the model's loss may lie above the adapter's, nats a token; by default a twentieth of what
            the adapter gained over its base, but not less than 0.05, and any loss if predictions are the same as far
            as rounding allows.
        verify: Whether the merged weights are computed again in samples, or in 'full'.
        compare: Whether to measure the other recipe as well; needs the disk space of a second model for a while.
        signer: Who signs the folder, and the adapter's own files in the registry; by default nobody.
        push_to_hub: A repository on the hub to upload the folder to, once it is recorded.
        on_progress: Called with (stage, done, total): bytes of what is merged, rows of what is measured.

    Returns:
        What was made.

    Raises:
        PromotionError: A gate is closed, or what was asked for makes no sense.
        MergeError: The adapter cannot be merged into the base.
        RegistryError: There is no such adapter, its files are gone or changed, or they cannot be signed.
    """
    _check_wishes(format, recipe, gguf_type, force, reason)
    if alias is not None:
        validate_name(alias)
    if push_to_hub is not None:
        hub.token_for(push_to_hub)  # before the work, not after it
    folder = output_folder(output)
    adapter = registry.adapter(ref)
    files = registry.checkout(adapter)
    if recipe == "as-trained" and not search_settings(registry, adapter).quantization.load_in_4bit:
        raise PromotionError(
            f"adapter {adapter.adapter_id} was not trained on a 4-bit base, so there is no other base to merge it "
            "into: leave out --recipe"
        )
    order = Order(
        format=format,
        recipe=recipe,
        gguf_type=gguf_type or ("q8_0" if format == "gguf" else None),
        verify=verify,
        compare=compare,
        tolerance=tolerance,
        base=base,
        dataset=dataset,
    )
    plan = {
        "adapter": adapter.artifact_sha256,
        "base": base,
        "format": format,
        "recipe": recipe,
        "gguf_type": order.gguf_type,
        "version": importlib.metadata.version("rankloom"),
    }
    promotion_id = secrets.token_hex(6)
    with staged(folder, plan) as staging:
        if format == "adapter":
            built = _adapter_alone(registry, adapter, files, staging, order, on_progress or _say_nothing)
        else:
            built = Build(registry, adapter, files, staging, order, on_progress or _say_nothing).run()
        refused = built.refusal is not None and not force
        if not refused:
            _finish(registry, adapter, built, order, signer)
            let_out(built.model, folder)
    reference = f"{adapter.name}@{alias}" if alias and not refused else None
    done = Promoted(
        promotion_id=promotion_id,
        adapter_id=adapter.adapter_id,
        status="refused" if refused else "done",
        recipe=recipe,
        format=format,
        output_path=str(folder),
        output_sha256=built.sha256,
        checks=built.checks,
        reason=built.refusal or "" if refused else reason,
        forced=force and built.refusal is not None,
        alias=reference,
    )
    moves = [AliasMoved(name=adapter.name, alias=alias, adapter_id=adapter.adapter_id, why=reason)] if alias else []
    registry.record(done, *([] if refused else moves))
    if refused:
        raise PromotionError(built.refusal or "")
    return Promotion(
        promotion_id=promotion_id,
        adapter_id=adapter.adapter_id,
        format=format,
        recipe=recipe,
        output=folder,
        output_sha256=built.sha256,
        checks=built.checks,
        alias=reference,
        url=None if push_to_hub is None else _push(folder, push_to_hub),
    )


def _check_wishes(format: Format, recipe: Recipe, gguf_type: str | None, force: bool, reason: str) -> None:
    if force and not reason:
        raise PromotionError("--force needs --reason: say why the check is overridden, it is recorded")
    if format == "nf4" and recipe == "as-trained":
        raise PromotionError(
            "quantizing the model of --recipe as-trained to 4 bits again rounds most of the adapter's update away "
            "(it is far smaller than the step between two 4-bit values): take --recipe full-precision with --format nf4"
        )
    types = {"gguf": GGUF_TYPES, "adapter": GGUF_LORA_TYPES}.get(format, ())
    if gguf_type is not None and gguf_type not in types:
        allowed = f"is one of {', '.join(types)}" if types else "is for --format gguf or adapter"
        raise PromotionError(f"with --format {format}, --gguf-type {allowed}, got {gguf_type!r}; choose another")


def _adapter_alone(
    registry: Registry, adapter: Adapter, files: Path, staging: Path, order: Order, tell: OnProgress
) -> Built:
    """Copy the PEFT folder; its address in the registry is what stands for its content."""
    base = registry.base(adapter.base_content_root)
    checks: dict[str, Any] = {"serving": {verdict.engine: asdict(verdict) for verdict in verdicts(files)}}
    model_base = BaseModel(path=Path(split_identity(base.identity)[0]), identity=base.identity)
    model = staging / "model"
    shutil.rmtree(model, ignore_errors=True)  # of an interrupted run
    export_adapter(files, model, base_name=split_identity(base.identity)[0])
    if order.gguf_type is not None:  # llama.cpp's names for the modules are those of the base
        model_base, checks["base"] = prove_base(registry, adapter, order.base, partial(tell, "fingerprint base"))
        export_gguf_lora(files, model_base.path, model / f"{adapter.name}-{order.gguf_type}.gguf", type=order.gguf_type)
    return Built(
        model=model,
        base=model_base,
        sha256=adapter.artifact_sha256,
        checks=json.loads(json.dumps(checks)),
        refusal=None,
    )


def _finish(registry: Registry, adapter: Adapter, built: Built, order: Order, signer: Signer | None) -> None:
    """Add what is said of a model to its folder, and sign it after every other file, as it counts them all."""
    if signer is not None:
        registry.sign(adapter, signer)
        built.checks["signed"] = True
    card = card_of(registry, adapter, built, order, signed=signer is not None)
    write_atomically(built.model / "README.md", card.encode())
    base = registry.base(adapter.base_content_root)
    manifest = {
        "adapter_id": adapter.adapter_id,
        "adapter_sha256": adapter.artifact_sha256,
        "base": {"identity": base.identity, "content_root": base.content_root, "structure": base.structure},
        "search": adapter.search_id,
        "params": adapter.params,
        "format": order.format,
        "recipe": order.recipe,
        "output_sha256": built.sha256,
        "checks": built.checks,
        "versions": versions(),
    }
    write_atomically(built.model / MANIFEST, json.dumps(manifest, indent=2).encode())
    if signer is not None:
        signer.sign(built.model)


def _push(folder: Path, repo_id: str) -> str:
    try:
        return hub.push_folder(folder, repo_id)
    except PromotionError as error:
        raise PromotionError(
            f"{folder} is promoted and recorded, but not on the hub: {error}; push it again with "
            f"`hf upload {repo_id} {folder}`"
        ) from error


def _say_nothing(stage: str, done: int, total: int) -> None:
    pass
