"""What an adapter adds to each module, where it is nothing but B·A times a factor, and otherwise why it is more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rankloom.errors import MergeError, PromotionError
from rankloom.merging.lora import read_lora
from rankloom_registry.artifacts.keys import PREFIX, Lora, Whole, matrix_pairs, parse_key
from rankloom_registry.artifacts.place import CONFIG, WEIGHTS
from rankloom_registry.formats.safetensors import TensorSpan, read_safetensors_header

_FLOATS = ("F32", "F16", "BF16")
_MERGE = "merge it instead (--format safetensors)"
_PEFT = "serve it with PEFT"


class PlainUpdate(NamedTuple):
    """What one module receives: scale · B·A, with A of shape (rank, in) and B of shape (out, rank)."""

    rank: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainAdapter:
    """An adapter, as far as its configuration and the headers of its tensors tell.

    Attributes:
        config: `adapter_config.json`.
        updates: What each module receives, by its name with PEFT's prefix; empty where there are obstacles.
        obstacles: What of the adapter is not scale · B·A of a linear layer, and what to do instead.
    """

    config: dict[str, Any]
    updates: dict[str, PlainUpdate]
    obstacles: tuple[str, ...]

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(update.rank for update in self.updates.values())


def read_plain_adapter(folder: Path) -> PlainAdapter:
    """Read an adapter's configuration and headers.

    Args:
        folder: A folder with PEFT's `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        PromotionError: A file is missing, or the configuration is not a JSON object.
        ArtifactError: The weights are not a sound safetensors file.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise PromotionError(f"an adapter must have {name}, but {folder} has none; give the folder that PEFT saved")
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise PromotionError(f"{folder / CONFIG} is not JSON ({error}); save the adapter again") from error
    if not isinstance(config, dict):
        raise PromotionError(f"{folder / CONFIG} is not a JSON object; save the adapter again")
    tensors = read_safetensors_header(folder / WEIGHTS).tensors
    if obstacles := tuple(_special(config, tensors)):
        return PlainAdapter(config=config, updates={}, obstacles=obstacles)
    try:
        lora = read_lora(folder / CONFIG)
    except MergeError as error:
        return PlainAdapter(config=config, updates={}, obstacles=(str(error),))
    updates = {
        module: PlainUpdate(lora.rank(module.removeprefix(PREFIX)), lora.scale(module.removeprefix(PREFIX)))
        for module in matrix_pairs(tensors)
    }
    obstacles = tuple(_misshapen(tensors, updates))
    return PlainAdapter(config=config, updates={} if obstacles else updates, obstacles=obstacles)


def _special(config: Mapping[str, Any], tensors: Mapping[str, TensorSpan]) -> Iterator[str]:
    keys = {name: parse_key(name) for name in tensors}
    modules = config.get("modules_to_save")
    wholes = [key for key in keys.values() if isinstance(key, Whole) and not key.within(modules)]
    halves = {key.half for key in keys.values() if isinstance(key, Lora)}
    if config.get("use_dora") or "magnitude" in halves:
        yield f"it is DoRA, which also rescales the weight that it is added to: {_MERGE}"
    if modules:
        yield f"it replaces whole modules (modules_to_save={modules!r}): {_MERGE}"
    if tokens := config.get("trainable_token_indices"):
        yield f"it replaces rows of the embeddings (trainable_token_indices={tokens!r}): {_PEFT}"
    elif any(key.embeds for key in wholes) or any("lora_embedding_" in name for name in tensors):
        yield f"it changes the embeddings: {_PEFT}"
    if config.get("bias", "none") != "none" or config.get("lora_bias") or "bias" in halves:
        found = f"bias={config.get('bias')!r}, lora_bias={config.get('lora_bias')!r}"
        yield f"it trains biases ({found}): {_PEFT}"
    if parameters := config.get("target_parameters"):
        yield f"it changes parameters that are no linear layer's, such as fused experts ({parameters!r}): {_MERGE}"
    # Said already: what modules_to_save names, biases, and the embeddings.
    said = [key for key in wholes if key.embeds or key.is_bias(config.get("bias")) or tokens]
    if strange := sorted(name for name, key in keys.items() if key is None or (key in wholes and key not in said)):
        yield f"its tensor {strange[0]!r} is no lora_A or lora_B: save the adapter again"


def _misshapen(tensors: Mapping[str, TensorSpan], updates: Mapping[str, PlainUpdate]) -> Iterator[str]:
    if not updates:
        yield "it holds no lora_A and lora_B: save the adapter again"
    for module, (a, b) in matrix_pairs(tensors).items():
        rank = updates[module].rank
        if a is None or b is None or len(a) != 2 or len(b) != 2 or (a[0], b[1]) != (rank, rank):
            yield (
                f"lora_A must be (r, in) and lora_B (out, r), but {module} has r={rank}, lora_A {a}, lora_B {b}: "
                "save the adapter again"
            )
    if strange := sorted(name for name, span in tensors.items() if span.dtype not in _FLOATS):
        yield f"{strange[0]} is {tensors[strange[0]].dtype}, none of {', '.join(_FLOATS)}: {_PEFT}"
