"""Measure a registered adapter on its own base: the loss of the search, on any dataset, base beside adapter."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankloom.config import SearchConfig, parse_config
from rankloom.data import canonical_rows, load_rows, rows_hash, str_source
from rankloom.errors import DataError, PromotionError
from rankloom.models import BaseModel, resolve_base, split_identity
from rankloom.tokens import tokenise
from rankloom_registry import Adapter, Evaluated, Registry, fingerprint_base

if TYPE_CHECKING:
    from peft import PeftModel

    from rankloom.training.evaluation import Evaluation
    from rankloom.training.resident import ResidentBase

OnBatch = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Rows to measure on.

    Attributes:
        tokens: Rows of `input_ids` and `labels`.
        rows: The same rows as text; empty where only the tokens were kept.
        source: What they came from.
        sha256: Hash of the rows as text.
    """

    tokens: Any
    rows: list[dict[str, Any]] = field(repr=False)
    source: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterEvaluation:
    """An adapter's loss on held-out rows, and its base's.

    Attributes:
        adapter_id: The adapter.
        dataset: Source, hash and number of rows.
        eval_loss: Adapter on its quantized base, nats a token.
        base_loss: The quantized base alone, nats a token; None when it was not asked for.
        tokens: Tokens with loss.
        samples: For some rows: prompt, expected, and what base and adapter generate greedily.
    """

    adapter_id: str
    dataset: dict[str, Any]
    eval_loss: float
    base_loss: float | None
    tokens: int
    samples: tuple[dict[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as JSON-ready values."""
        gain = None if self.base_loss is None else self.base_loss - self.eval_loss
        return {
            "adapter_id": self.adapter_id,
            "dataset": self.dataset,
            "eval_loss": self.eval_loss,
            "base_loss": self.base_loss,
            "gain_over_base": gain,
            "tokens": self.tokens,
            "samples": list(self.samples),
        }


def base_of(registry: Registry, adapter: Adapter, given: str | None = None) -> BaseModel:
    """Return an adapter's base, proven by its content and not by its name.

    Args:
        registry: Where the adapter is registered.
        adapter: The adapter.
        given: Where the base is now; by default where it was when the adapter was trained.

    Raises:
        ModelError: There is no base at that place.
        PromotionError: There is one, but its content is not what the adapter was trained on.
    """
    recorded = registry.base(adapter.base_content_root)
    base = resolve_base(*(split_identity(recorded.identity) if given is None else (given, None)))
    found = fingerprint_base(base.path, identity=base.identity)
    if found.content_root != adapter.base_content_root:
        raise PromotionError(
            f"adapter {adapter.adapter_id} belongs to the base with content root "
            f"{adapter.base_content_root[:16]}… ({recorded.identity}), but {base.path} has "
            f"{found.content_root[:16]}…: give the folder of the right base with --base"
        )
    return base


def search_settings(registry: Registry, adapter: Adapter) -> SearchConfig:
    """Return the configuration of the search that made an adapter: how it was tokenised and quantized."""
    if adapter.search_id is None:
        return parse_config({"model_name_or_path": adapter.base_identity, "dataset": "unknown"})
    return parse_config(registry.search(adapter.search_id).config, source=f"search {adapter.search_id}")


def held_out_rows(registry: Registry, adapter: Adapter, dataset: Any, base: BaseModel) -> HeldOut:
    """Return rows to measure on: a dataset, or the held-out split of the adapter's own search.

    Raises:
        DataError: No dataset is given and the search's run folder is gone, or the dataset cannot be used.
    """
    from rankloom.models import load_tokenizer

    config = search_settings(registry, adapter)
    if dataset is None:
        return _search_split(registry, adapter, config)
    rows, _ = canonical_rows(load_rows(dataset), str_source(dataset))
    tokens = tokenise(
        rows,
        load_tokenizer(base.path),
        max_length=config.training.max_length,
        completion_only_loss=config.training.completion_only_loss,
    )
    if not len(tokens):
        raise DataError(f"no row of {str_source(dataset)} has loss within max_length={config.training.max_length}")
    return HeldOut(tokens=tokens, rows=list(rows), source=str_source(dataset), sha256=rows_hash(rows))


def _search_split(registry: Registry, adapter: Adapter, config: SearchConfig) -> HeldOut:
    import json

    import datasets

    # Beside the registry as it was opened: the recorded path may be relative to another folder, or have moved with it.
    storage = config.storage if config.storage_path is not None else registry.path.with_suffix(".runs")
    folder = storage / adapter.name / "data"
    if adapter.search_id is None or not (folder / "eval").is_dir():
        raise DataError(f"the held-out split of {adapter.name!r} is not in {folder}: give --dataset FILE")
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    return HeldOut(
        tokens=datasets.load_from_disk(str(folder / "eval")),
        rows=rows,
        source=f"held-out split of {adapter.name}",
        sha256=rows_hash(datasets.Dataset.from_list(rows)),
    )


def load_with_adapter(folder: Path, base: BaseModel, config: SearchConfig) -> tuple[ResidentBase, PeftModel]:
    """Load the base as the search quantized it, with an adapter on it from a folder that `Registry.checkout` gave."""
    from peft import PeftModel

    from rankloom.training.resident import load_resident_base

    resident = load_resident_base(base.path, config.quantization, config.training)
    return resident, PeftModel.from_pretrained(resident.model, str(folder), is_trainable=False)


def measure(
    model: Any, held_out: HeldOut, config: SearchConfig, dtype: Any, on_batch: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Measure a model's loss on held-out rows, with the search's batch size and precision."""
    from rankloom.training.evaluation import evaluate_loss

    return evaluate_loss(
        model,
        held_out.tokens,
        batch_size=config.training.per_device_eval_batch_size,
        autocast_dtype=dtype,
        on_batch=on_batch,
    )


def evaluate_adapter(
    registry: Registry,
    ref: str,
    *,
    dataset: Any = None,
    base: str | None = None,
    base_too: bool = False,
    samples: int = 0,
    on_batch: OnBatch | None = None,
) -> AdapterEvaluation:
    """Measure an adapter on its base and record it.

    Args:
        registry: Where it is registered.
        ref: The adapter: id, name or name@alias.
        dataset: Rows as a search takes them; by default the held-out split of its search.
        base: Where the base is now, if it moved.
        base_too: Whether to measure the base alone as well.
        samples: How many of the first rows to generate for; rows with a prompt only.
        on_batch: Called with (what is measured, rows done, rows in all).

    Returns:
        The losses.

    Raises:
        RankloomError: The base is not the adapter's, or the dataset cannot be used.
        RegistryError: There is no such adapter, or its files are gone or changed.
    """
    adapter = registry.adapter(ref)
    folder = registry.checkout(adapter)
    model_base = base_of(registry, adapter, base)
    config = search_settings(registry, adapter)
    held_out = held_out_rows(registry, adapter, dataset, model_base)
    resident, model = load_with_adapter(folder, model_base, config)

    def told(what: str) -> Callable[[int, int], None] | None:
        return None if on_batch is None else lambda done, total: on_batch(what, done, total)

    tuned = measure(model, held_out, config, resident.compute_dtype, told("adapter"))
    base_loss = None
    if base_too:
        with model.disable_adapter():
            base_loss = measure(model, held_out, config, resident.compute_dtype, told("base")).loss
    result = AdapterEvaluation(
        adapter_id=adapter.adapter_id,
        dataset={"source": held_out.source, "sha256": held_out.sha256, "rows": len(held_out.tokens)},
        eval_loss=tuned.loss,
        base_loss=base_loss,
        tokens=sum(tuned.row_tokens),
        samples=tuple(sample_completions(model, resident, [row for row in held_out.rows if "prompt" in row][:samples])),
    )
    metrics = {"eval_loss": result.eval_loss, "tokens": result.tokens}
    if base_loss is not None:
        metrics["base_loss"] = base_loss
    registry.record(
        Evaluated(
            evaluation_id=secrets.token_hex(6),
            adapter_id=adapter.adapter_id,
            base_content_root=adapter.base_content_root,
            dataset=result.dataset,
            metrics=metrics,
        )
    )
    return result


def sample_completions(
    model: PeftModel, resident: ResidentBase, rows: list[dict[str, Any]], *, max_new_tokens: int = 40
) -> list[dict[str, str]]:
    """Generate greedily from the prompts of some rows, with the base alone and with the adapter.

    Args:
        model: The adapter on the base.
        resident: The base.
        rows: Rows with a `prompt` and a `completion`, as strings or messages.
        max_new_tokens: Tokens to generate at most.

    Returns:
        For each row: prompt, expected, base and adapter.
    """
    samples = []
    for row in rows:
        prompt = row["prompt"]
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        expected = row["completion"] if isinstance(row["completion"], str) else row["completion"][-1]["content"]
        with model.disable_adapter():
            alone = _generate(model, resident, prompt, max_new_tokens)
        tuned = _generate(model, resident, prompt, max_new_tokens)
        samples.append({"prompt": text, "expected": expected, "base": alone, "adapter": tuned})
    return samples


def _generate(model: PeftModel, resident: ResidentBase, prompt: Any, max_new_tokens: int) -> str:
    import torch

    from rankloom.training.evaluation import autocast, evaluating

    tokenizer = resident.tokenizer
    if isinstance(prompt, str):
        inputs = tokenizer(prompt, return_tensors="pt")
    else:
        inputs = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in inputs.items() if name in ("input_ids", "attention_mask")}
    with evaluating(model), torch.no_grad(), autocast(device, resident.compute_dtype):
        output = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
        )
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(text).strip()
