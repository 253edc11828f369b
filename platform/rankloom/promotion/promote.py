"""Promotion: merge an adapter into its full-precision base, measure what came out, and only then let it out."""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rankloom.errors import PromotionError
from rankloom.evaluate import (
    HeldOut,
    base_of,
    held_out_rows,
    load_with_adapter,
    measure,
    search_settings,
)
from rankloom.merging.merge import merge_adapter
from rankloom.models import split_identity
from rankloom_registry import Adapter, AliasMoved, Promoted, Registry, validate_name
from rankloom_registry.files import sync_folder, write_atomically
from rankloom_registry.signing import Signer

Format = Literal["safetensors", "adapter"]
MANIFEST = "rankloom.json"
TOLERANCE = 0.05  # nats a token; docs/promotion.md says why
LOST_GAIN = 0.05  # share of what the adapter gained over its base
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What a promotion made.

    Attributes:
        promotion_id: Its id in the registry.
        adapter_id: The adapter.
        format: 'safetensors' (merged) or 'adapter'.
        recipe: 'full-precision'.
        output: The folder.
        output_sha256: Hash over the names and hashes of its files.
        checks: The figures of its checks.
    """

    promotion_id: str
    adapter_id: str
    format: Format
    recipe: str
    output: Path
    output_sha256: str
    checks: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the promotion as JSON-ready values."""
        return {**asdict(self), "output": str(self.output)}


def promote(
    registry: Registry,
    ref: str,
    output: Path,
    *,
    format: Format = "safetensors",
    base: str | None = None,
    dataset: Any = None,
    alias: str | None = None,
    reason: str = "",
    force: bool = False,
    tolerance: float | None = None,
    signer: Signer | None = None,
    on_progress: OnProgress | None = None,
) -> Promotion:
    """Merge, measure, export and record an adapter.

    Args:
        registry: Where it is registered.
        ref: The adapter: id, name or name@alias.
        output: Folder to make.
        format: 'safetensors' merges into the full-precision base; 'adapter' exports the PEFT folder.
        base: Where the base is now, if it moved.
        dataset: Rows to measure on; by default the held-out split of the adapter's search.
        alias: Alias of the adapter's name that moves to it after success.
        reason: Why, for the record.
        force: Let a model out that is worse than the tolerance allows; needs a reason.
        tolerance: How much the merged model's loss may lie above the adapter's, nats a token; by default a twentieth
            of what the adapter gained over its base, but not less than 0.05.
        signer: Who signs the folder, and the adapter's own files in the registry; by default nobody.
        on_progress: Called with (stage, done, total).

    Returns:
        What was made.

    Raises:
        PromotionError: The base is not the adapter's, or the merged model is worse than the tolerance allows.
        MergeError: The adapter cannot be merged into the base.
        RegistryError: There is no such adapter, its files are gone or changed, or they cannot be signed.
    """
    if force and not reason:
        raise PromotionError("--force needs --reason: say why the check is overridden, it is recorded")
    if alias is not None:
        validate_name(alias)
    folder = output_folder(output)
    adapter = registry.adapter(ref)
    files = registry.checkout(adapter)
    tell = on_progress or (lambda stage, done, total: None)
    promotion_id = secrets.token_hex(6)
    with _partial(folder) as partial:
        sha256: str
        checks: dict[str, Any] = {}
        refusal: str | None = None
        if format == "adapter":
            sha256 = _export(registry, adapter, files, partial)
        else:
            sha256, checks, refusal = _merge(registry, adapter, files, partial, base, dataset, tolerance, tell)
        refused = refusal is not None and not force
        if not refused:
            if signer is not None:
                registry.sign(adapter, signer)
                checks["signed"] = True
            _write_manifest(partial, registry, adapter, format, sha256, checks)
            if signer is not None:
                signer.sign(partial)  # after every other file, as it counts them all
            sync_folder(partial)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
            sync_folder(folder.parent)
    done = Promoted(
        promotion_id=promotion_id,
        adapter_id=adapter.adapter_id,
        status="refused" if refused else "done",
        recipe="full-precision",
        format=format,
        output_path=str(folder),
        output_sha256=sha256,
        checks=checks,
        reason=refusal or reason if refused else reason,
        forced=force and refusal is not None,
    )
    moved = AliasMoved(name=adapter.name, alias=alias, adapter_id=adapter.adapter_id, why=reason) if alias else None
    registry.record(done, *([moved] if moved and not refused else []))
    if refused:
        raise PromotionError(refusal or "")
    return Promotion(
        promotion_id=promotion_id,
        adapter_id=adapter.adapter_id,
        format=format,
        recipe="full-precision",
        output=folder,
        output_sha256=sha256,
        checks=checks,
    )


def output_folder(path: Path) -> Path:
    """Return an output folder's absolute path, once it is clear that nothing would be overwritten.

    Raises:
        PromotionError: It exists and is not an empty folder, or its parent does not exist.
    """
    output = path.expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise PromotionError(f"{output} exists and is not empty: choose another --output, or remove it first")
    if not output.parent.is_dir():
        raise PromotionError(f"the folder {output.parent} does not exist: make it first, or choose another --output")
    return output


def _merge(
    registry: Registry,
    adapter: Adapter,
    files: Path,
    partial: Path,
    base: str | None,
    dataset: Any,
    tolerance: float | None,
    tell: OnProgress,
) -> tuple[str, dict[str, Any], str | None]:
    """Merge into `partial` and measure; returns the output's hash, the figures, and why it should not go out."""
    model_base = base_of(registry, adapter, base)
    config = search_settings(registry, adapter)
    held_out = held_out_rows(registry, adapter, dataset, model_base)
    report = merge_adapter(
        adapter=files,
        base=model_base.path,
        output=partial,
        progress=lambda done, total: tell("merge", done, total),
    )
    # One model in memory at a time: the adapter on its quantized base first, then what was merged.
    resident, model = load_with_adapter(files, model_base, config)
    trained = measure(
        model, held_out, config, resident.compute_dtype, lambda done, total: tell("measure adapter", done, total)
    ).loss
    with model.disable_adapter():
        alone = measure(
            model, held_out, config, resident.compute_dtype, lambda done, total: tell("measure base", done, total)
        ).loss
    del resident, model
    merged = _merged_loss(partial, held_out, config, lambda done, total: tell("measure merged", done, total))
    allowed = max(TOLERANCE, LOST_GAIN * (alone - trained)) if tolerance is None else tolerance
    checks = {
        "base_content_root": adapter.base_content_root,
        "modules_merged": report.modules_merged,
        "tensors_copied": report.tensors_copied,
        "dataset": {"source": held_out.source, "sha256": held_out.sha256, "rows": len(held_out.tokens)},
        "base_loss": alone,
        "adapter_loss": trained,
        "merged_loss": merged,
        "delta": merged - trained,
        "tolerance": allowed,
    }
    refusal = None
    if not merged - trained <= allowed:  # also true for NaN
        refusal = (
            f"the merged model's loss is {merged:.4f}, the adapter's {trained:.4f} nats a token: the difference "
            f"{merged - trained:+.4f} is beyond the tolerance {allowed:.4g}; keep the adapter on its 4-bit base "
            "(--format adapter), or override with --force --reason"
        )
    return report.output_sha256, checks, refusal


def _merged_loss(folder: Path, held_out: HeldOut, config: Any, on_batch: Callable[[int, int], None]) -> float:
    from transformers import AutoModelForCausalLM

    from rankloom.training.resident import compute_dtype_for, training_device

    device = training_device()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", device_map={"": device}, local_files_only=True, trust_remote_code=False
    )
    dtype = compute_dtype_for(config.quantization.bnb_4bit_compute_dtype, device)
    return measure(model, held_out, config, dtype, on_batch).loss


def _export(registry: Registry, adapter: Adapter, files: Path, partial: Path) -> str:
    """Copy the PEFT folder without the registry's own manifest; returns the adapter's address."""
    shutil.copytree(files, partial, ignore=shutil.ignore_patterns("manifest.json"))
    base = registry.base(adapter.base_content_root)
    config = partial / "adapter_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = split_identity(base.identity)[0]
    write_atomically(config, json.dumps(values, indent=2, sort_keys=True).encode())
    return adapter.artifact_sha256


def _write_manifest(
    folder: Path, registry: Registry, adapter: Adapter, format: str, sha256: str, checks: dict[str, Any]
) -> None:
    base = registry.base(adapter.base_content_root)
    manifest = {
        "adapter_id": adapter.adapter_id,
        "adapter_sha256": adapter.artifact_sha256,
        "base": {"identity": base.identity, "content_root": base.content_root, "structure": base.structure},
        "search": adapter.search_id,
        "params": adapter.params,
        "format": format,
        "recipe": "full-precision",
        "output_sha256": sha256,
        "checks": checks,
        "versions": {name: importlib.metadata.version(name) for name in ("rankloom", "torch", "transformers", "peft")},
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2).encode())


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """Yield a name beside the output to build under; what is left of it at the end is removed."""
    partial = folder.with_name(f".{folder.name}.promoting-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # In a container, a promotion that was killed had this process id too.
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
