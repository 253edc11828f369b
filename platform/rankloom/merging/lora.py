"""What an `adapter_config.json` says about a merge; what it says beside that is inert or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open

from rankloom.errors import MergeError

T = TypeVar("T")

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
    use_dora: bool = False
    # PEFT saves what it found in the model, whatever the user asked for: True for GPT-2's Conv1D, if not quantized.
    fan_in_fan_out: bool = False
    rank_pattern: dict[re.Pattern[str], PositiveInt] | None = None
    alpha_pattern: dict[re.Pattern[str], FiniteFloat] | None = None
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None
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


def read_lora(path: Path) -> Lora:
    """Read an `adapter_config.json`.

    Raises:
        MergeError: It cannot be read, or asks for something that is not merged here.
    """
    try:
        lora = Lora.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MergeError(f"an adapter must have {path.name}: {error}; give the folder that PEFT saved") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise not_merged(path, ".".join(map(str, first["loc"])), first["input"]) from error
    for name, value in (lora.model_extra or {}).items():
        if value and name not in _INERT:
            raise not_merged(path, name, value)
    return lora


def not_merged(path: Path, name: str, value: object) -> MergeError:
    """Return the refusal of an adapter that asks for something else than is merged here."""
    return MergeError(
        "only LoRA, rsLoRA, DoRA and modules_to_save can be merged, "
        f"but {path} has {name}={value!r}; keep it as an adapter, or merge it with PEFT"
    )


def open_weights(path: Path) -> Any:
    """Open an `adapter_model.safetensors`; the result is a context manager that reads one tensor at a time.

    Raises:
        MergeError: It is missing, torn, or not safetensors.
    """
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise MergeError(f"{path} must be a whole safetensors file: {error}; save the adapter again") from error
