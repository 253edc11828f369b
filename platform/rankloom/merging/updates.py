"""The adapter's side of a merge: what PEFT saved, and which weight of the base receives which update."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open

from rankloom.errors import MergeError
from rankloom.models import leaf_modules
from rankloom_registry.artifacts.keys import HEADS, base_tensor
from rankloom_registry.formats.checkpoint import Checkpoint
from rankloom_registry.formats.safetensors import TensorSpan

T = TypeVar("T")

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Fields of an adapter_config.json that say where and how it was trained; its tensors tell which weights it changes.
_INERT = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
_INERT |= {"exclude_modules", "layers_pattern", "layers_to_transform", "lora_dropout", "target_modules"}
_INERT |= {"corda_config", "eva_config", "loftq_config", "lora_ga_config"}
_INERT |= {"megatron_core", "qalora_group_size", "runtime_config"}


class Lora(BaseModel):
    """The fields of `adapter_config.json` that decide what is added; every other one is inert or refused."""

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: Literal["LORA"]
    r: PositiveInt
    lora_alpha: FiniteFloat
    use_rslora: bool = False
    # PEFT saves what it found in the model, whatever the user asked for: True for GPT-2's Conv1D, if not quantized.
    fan_in_fan_out: bool = False
    rank_pattern: dict[re.Pattern[str], PositiveInt] | None = None
    alpha_pattern: dict[re.Pattern[str], FiniteFloat] | None = None
    bias: Literal["none"] = "none"
    # The other initializations (pissa, olora, corda, loftq, lora_ga) also change the base that the adapter belongs to.
    init_lora_weights: Literal[True, False, "gaussian", "orthogonal", "eva"] | None = True

    def rank(self, module: str) -> int:
        """Return the rank of a module's update."""
        return _pattern_value(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Return what a module's B·A is multiplied with."""
        alpha, rank = _pattern_value(self.alpha_pattern, module, self.lora_alpha), self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def _pattern_value(patterns: Mapping[re.Pattern[str], T] | None, module: str, default: T) -> T:
    # The rule of `peft.utils.other.get_pattern_key`: the first key that matches whole parts at the name's end.
    matches = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key.pattern})$", module))
    return next(matches, default)


@dataclass(frozen=True, slots=True)
class LoraUpdate:
    """What one base weight receives: scale · B·A, transposed where the base stores (in, out).

    Attributes:
        lora_a: Name of the adapter's tensor A, of shape (r, in).
        lora_b: Name of the adapter's tensor B, of shape (out, r).
        rank: r.
        scale: Factor of B·A.
        transposed: Whether the base's weight is (in, out).
    """

    lora_a: str
    lora_b: str
    rank: int
    scale: float
    transposed: bool


def read_lora(path: Path) -> Lora:
    """Read an `adapter_config.json`.

    Raises:
        MergeError: It cannot be read, or is not that of plain LoRA or rsLoRA.
    """
    try:
        lora = Lora.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MergeError(f"an adapter must have {path.name}: {error}; give the folder that PEFT saved") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise MergeError(_not_plain(path, ".".join(map(str, first["loc"])), first["input"])) from error
    for name, value in (lora.model_extra or {}).items():
        if value and name not in _INERT:
            raise MergeError(_not_plain(path, name, value))
    return lora


def _not_plain(path: Path, name: str, value: object) -> str:
    found = f"{path} has {name}={value!r}"
    return f"only plain LoRA and rsLoRA can be merged, but {found}; keep it as an adapter, or merge it with PEFT"


def open_weights(path: Path) -> Any:
    """Open an `adapter_model.safetensors`; the result is a context manager that reads one tensor at a time.

    Raises:
        MergeError: It is missing, torn, or not safetensors.
    """
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise MergeError(f"{path} must be a whole safetensors file: {error}; save the adapter again") from error


def plan_updates(weights: Any, lora: Lora, checkpoint: Checkpoint) -> dict[str, LoraUpdate]:
    """Find the base weight of each adapter tensor, and check shapes and values.

    Args:
        weights: The adapter's tensors, as `open_weights` returned them.
        lora: Its configuration.
        checkpoint: The base.

    Returns:
        Names of base weights to what each receives; no other weight changes.

    Raises:
        MergeError: A tensor has no partner, no place in the base, the wrong shape, or is not finite.
    """
    names = set(weights.keys())
    tensors = checkpoint.tensors
    updates: dict[str, LoraUpdate] = {}
    for name in sorted(names):
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if match is None:
            raise MergeError(_not_plain(Path("its weights file"), "tensor", name))
        module, half = match.groups()
        other = f"base_model.model.{module}.lora_{'B' if half == 'A' else 'A'}.weight"
        if other not in names:
            raise MergeError(f"lora_A and lora_B must come in pairs, but {other} is missing; save the adapter again")
        if not weights.get_tensor(name).isfinite().all():
            raise MergeError(f"adapter weights must be finite, but {name} holds NaN or Inf; promote another adapter")
        if half == "A":
            target = _find_target(module, tensors, checkpoint.config)
            if target in updates:
                raise MergeError(
                    f"a weight takes one update, but two modules of the adapter target {target}; merge one"
                )
            # By class, as PEFT does: trained on a quantized base, an adapter of a Conv1D has fan_in_fan_out=False.
            transposed = lora.fan_in_fan_out or leaf_modules(checkpoint.folder).get(module) == "Conv1D"
            updates[target] = LoraUpdate(name, other, lora.rank(module), lora.scale(module), transposed)
            _check_fit(weights, updates[target], target, tensors[target])
    if not updates:
        raise MergeError("the adapter must hold at least one lora_A and lora_B, got none; save it again")
    return updates


def _find_target(module: str, tensors: Mapping[str, TensorSpan], config: Mapping[str, Any]) -> str:
    tied = config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings"))
    # Absent counts as tied: older files leave out what is the default, and GPT-2's default is tied.
    if module.rpartition(".")[2] in HEADS and tied is not False:
        raise MergeError(
            f"an output head may be merged only where config.json says tie_word_embeddings=false, got {tied!r}: "
            f"merging {module} would change the input embeddings too; keep it as an adapter"
        )
    if name := base_tensor(f"{module}.weight", tensors):
        return name
    raise MergeError(f"the base must have each module of the adapter, but not {module}.weight; give the adapter's base")


def _check_fit(weights: Any, update: LoraUpdate, name: str, target: TensorSpan) -> None:
    if target.dtype not in DTYPES:
        raise MergeError(f"a merged weight must be F32, F16 or BF16, but {name} is {target.dtype}; give another base")
    shape = target.shape[::-1] if update.transposed else target.shape
    a, b = (tuple(weights.get_slice(half).get_shape()) for half in (update.lora_a, update.lora_b))
    if len(shape) != 2 or a != (update.rank, shape[1]) or b != (shape[0], update.rank):
        raise MergeError(
            f"lora_A must be (r, in) and lora_B (out, r), but {name} is {target.shape}, r={update.rank}, lora_A {a}, "
            f"lora_B {b}, fan_in_fan_out={update.transposed}; give the base that the adapter was trained on"
        )
