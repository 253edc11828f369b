"""Promotion: make a model of an adapter, see that it is the one that was trained, and only then let it out."""

from __future__ import annotations

import hashlib
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
from rankloom.data import str_source
from rankloom.errors import PromotionError
from rankloom.evaluation.base import search_settings
from rankloom.exports.adapter import export_adapter
from rankloom.exports.gguf import GGUF_LORA_TYPES, GGUF_TYPES, export_gguf_lora, require_converter
from rankloom.exports.verdicts import verdicts
from rankloom.merging import Recipe, Verify
from rankloom.models import BaseModel, split_identity
from rankloom.outputs import MANIFEST, absolute, free_output, partial_folder, publish, unfinished
from rankloom.promotion import Format
from rankloom.promotion.building import Build, Built, Order
from rankloom.promotion.facts import card_of, versions
from rankloom.promotion.gates import OnGate, gate, prove_base
from rankloom_registry import Adapter, AliasMoved, Promoted, Registry, validate_name
from rankloom_registry.files import write_atomically
from rankloom_registry.signing import SIGNATURE, Signer

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
    on_gate: OnGate | None = None,
) -> Promotion:
    """Merge, check, measure, export and record an adapter.

    Interrupted or killed, the same call goes on where it was; one that could not record what it made records it then.

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
        on_gate: Called with (name, figures) of each gate, in their order, once it is passed or closed: 'base', 'disk',
            'finite', 'replay' and 'drift', or for the format 'adapter' 'base' and 'serving'; `passed` is a figure.

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
    output = absolute(output)
    adapter = registry.adapter(ref)
    files = registry.checkout(adapter)
    _check_quantization(registry, adapter, format, recipe)
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
        "adapter": [adapter.adapter_id, adapter.artifact_sha256],
        "base": base,
        "format": format,
        "recipe": recipe,
        "gguf_type": order.gguf_type,
        "version": importlib.metadata.version("rankloom"),
    }
    source = None if dataset is None else str_source(dataset)
    call = _sha256([plan, verify, compare, tolerance, source, force, signer is not None])
    manifest = _unrecorded(registry, adapter, output, call)
    if manifest is None:
        free_output(output)
        tell, told = on_progress or (lambda stage, done, total: None), on_gate or (lambda name, figures: None)
        make = (
            partial(_adapter_alone, registry, adapter, files, order, tell, told)
            if format == "adapter"
            else Build(registry, adapter, files, order, tell, told).run
        )
        with unfinished(output, _sha256(plan)) as staging:
            built = make(staging)
            refused = None if force else built.refusal
            manifest = _manifest(registry, adapter, built, order) | {
                "promotion_id": secrets.token_hex(6),
                "forced": force and built.refusal is not None,
                "call": call,
            }
            if refused is not None:
                registry.record(_event(manifest, output, status="refused", reason=refused))
                raise PromotionError(refused)
            _finish(registry, adapter, built, order, manifest, signer)
            publish(built.model, output)
    else:
        shutil.rmtree(partial_folder(output), ignore_errors=True)  # of the call that was killed
    reference = f"{adapter.name}@{alias}" if alias else None
    done = _event(manifest, output, status="done", reason=reason, alias=reference)
    # Made after it, and so dated: an undo looks for the moves since the promotion.
    moves = [AliasMoved(name=adapter.name, alias=alias, adapter_id=adapter.adapter_id, why=reason)] if alias else []
    registry.record(done, *moves)
    return Promotion(
        promotion_id=done.promotion_id,
        adapter_id=adapter.adapter_id,
        format=format,
        recipe=recipe,
        output=output,
        output_sha256=done.output_sha256,
        checks=dict(done.checks),
        alias=reference,
        url=None if push_to_hub is None else _push(output, push_to_hub),
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
    if format == "gguf" or gguf_type is not None:
        require_converter()


def _check_quantization(registry: Registry, adapter: Adapter, format: Format, recipe: Recipe) -> None:
    quantization = search_settings(registry, adapter).quantization
    if recipe == "as-trained" and not quantization.load_in_4bit:
        raise PromotionError(
            f"adapter {adapter.adapter_id} was not trained on a 4-bit base, so there is no other base to merge it "
            "into: leave out --recipe"
        )
    if format == "nf4" and (quantization.load_in_4bit, quantization.bnb_4bit_quant_type) != (True, "nf4"):
        raise PromotionError(
            f"--format nf4 quantizes as the search did, but adapter {adapter.adapter_id} was not trained on an NF4 "
            "base: take --format safetensors"
        )


def _unrecorded(registry: Registry, adapter: Adapter, output: Path, call: str) -> dict[str, Any] | None:
    """The manifest of an output that the same call made before, but could not record or did not live to record."""
    try:
        manifest = json.loads((output / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("call") != call:
        return None
    recorded = {one.promotion_id for one in registry.promotions(adapter.adapter_id)}
    return None if manifest["promotion_id"] in recorded else manifest


def _adapter_alone(
    registry: Registry, adapter: Adapter, files: Path, order: Order, tell: OnProgress, on_gate: OnGate, staging: Path
) -> Built:
    """Copy the PEFT folder; its address in the registry is what stands for its content."""
    base = registry.base(adapter.base_content_root)
    checks: dict[str, Any] = {"serving": {verdict.engine: asdict(verdict) for verdict in verdicts(files)}}
    model_base = BaseModel(path=Path(split_identity(base.identity)[0]), identity=base.identity)
    model = staging / "model"
    shutil.rmtree(model, ignore_errors=True)  # of an interrupted run
    export_adapter(files, model, base_name=split_identity(base.identity)[0])
    if order.gguf_type is not None:  # llama.cpp's names for the modules are those of the base
        with gate("base", on_gate) as figures:
            model_base, proof = prove_base(registry, adapter, order.base, partial(tell, "fingerprint base"))
            figures |= proof
        checks["base"] = proof
        export_gguf_lora(files, model_base.path, model / f"{adapter.name}-{order.gguf_type}.gguf", type=order.gguf_type)
    plain = json.loads(json.dumps(checks))
    on_gate("serving", {"passed": True, "engines": plain["serving"]})
    return Built(
        model=model,
        base=model_base,
        sha256=adapter.artifact_sha256,
        checks=plain,
        refusal=None,
    )


def _manifest(registry: Registry, adapter: Adapter, built: Built, order: Order) -> dict[str, Any]:
    base = registry.base(adapter.base_content_root)
    return {
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


def _event(manifest: dict[str, Any], output: Path, **more: Any) -> Promoted:
    """What the registry records of a promotion."""
    told = ("promotion_id", "adapter_id", "recipe", "format", "output_sha256", "checks", "forced")
    return Promoted(output_path=str(output), **{name: manifest[name] for name in told}, **more)


def _finish(
    registry: Registry, adapter: Adapter, built: Built, order: Order, manifest: dict[str, Any], signer: Signer | None
) -> None:
    """Add what is said of a model to its folder, and sign it after every other file, as it counts them all."""
    (built.model / SIGNATURE).unlink(missing_ok=True)  # of an interrupted run
    if signer is not None:
        registry.sign(adapter, signer)
        built.checks["signed"] = True
    card = card_of(registry, adapter, built, order, signed=signer is not None)
    write_atomically(built.model / "README.md", card.encode())
    write_atomically(built.model / MANIFEST, json.dumps(manifest, indent=2).encode())
    if signer is not None:
        signer.sign(built.model)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _push(folder: Path, repo_id: str) -> str:
    try:
        return hub.push_folder(folder, repo_id)
    except PromotionError as error:
        raise PromotionError(
            f"{folder} is promoted and recorded, but not on the hub: {error}; push it again with "
            f"`hf upload {repo_id} {folder}`"
        ) from error
