"""What a search is: inert, typed, bounded data, read from Python keywords or a YAML file.

Precedence is default < YAML < environment < flag. Heavy objects are built from these models elsewhere.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rankloom.errors import ConfigError

# Of transformers' names, those that work without settings or packages of their own.
LearningRateSchedule = Literal[
    "constant_with_warmup", "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "adafactor", "adagrad", "rmsprop", "sgd",
]  # fmt: skip
MOST_SAMPLES = 100_000  # trials
REDUCTION_FACTOR = 3  # of ASHA: one trial in so many goes on from a rung
SAMPLERS = ("tpe", "random")
SCHEDULERS = ("asha", "median", "fifo")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class TrainingConfig(_Model):
    """How every trial trains; names and meanings are those of TRL's `SFTConfig`."""

    max_steps: int | None = Field(None, ge=1, description="Optimizer steps a trial; overrides num_train_epochs.")
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the training rows when max_steps is not set.")
    per_device_train_batch_size: int = Field(4, ge=1, description="Rows in one forward pass.")
    per_device_eval_batch_size: int = Field(8, ge=1, description="Rows in one evaluation forward pass.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Forward passes that make one optimizer step.")
    max_length: int = Field(512, ge=8, description="Tokens a row is cut to.")
    eval_steps: int | None = Field(None, ge=1, description="Steps between evaluations; a quarter of the run if unset.")
    eval_strategy: Literal["steps", "rungs"] = Field(
        "steps", description="'steps' evaluates every eval_steps; 'rungs' at eval_steps, 3-fold, 9-fold, and the end."
    )
    max_eval_samples: int | None = Field(None, ge=1, description="Rows of the held-out split that are evaluated.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    lr_scheduler_type: LearningRateSchedule = Field(
        "constant_with_warmup", description="A schedule that keeps early-stopping rungs comparable (docs/log.md)."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(0.3, gt=0, description="Gradient clipping norm (QLoRA, section 4).")
    optim: Optimizer | None = Field(
        None, description="transformers' optimizer name; paged AdamW on CUDA, AdamW on CPU."
    )
    packing: bool = Field(False, description="TRL's sequence packing into rows of max_length.")
    completion_only_loss: bool | None = Field(None, description="Loss on the completion only; on where there is one.")
    gradient_checkpointing: bool | None = Field(None, description="Recompute activations; on for CUDA, off for CPU.")

    @model_validator(mode="after")
    def _packing_is_supported(self) -> Self:
        if self.packing:
            raise ValueError("packing must be false: rows are evaluated one by one, so remove `packing` from training")
        return self

    def eval_every(self, max_steps: int) -> int:
        """Return the steps between evaluations of a run: a quarter of it where `eval_steps` is unset."""
        return self.eval_steps or max(1, max_steps // 4)

    def evaluates_at(self, step: int, max_steps: int) -> bool:
        """Return whether a run of `max_steps` is evaluated after a step."""
        every = self.eval_every(max_steps)
        at_rest = step in rungs(every, max_steps) if self.eval_strategy == "rungs" else step % every == 0
        return at_rest or step == max_steps


def rungs(grace_steps: int, max_steps: int) -> tuple[int, ...]:
    """Return the steps before the last at which ASHA decides, for a first rung of `grace_steps`."""
    steps, step = [], grace_steps
    while step < max_steps:
        steps.append(step)
        step *= REDUCTION_FACTOR
    return tuple(steps)


class QuantizationConfig(_Model):
    """How the resident base is loaded; names are those of transformers' `BitsAndBytesConfig`."""

    load_in_4bit: bool = Field(True, description="4-bit base (QLoRA).")
    load_in_8bit: bool = Field(False, description="LLM.int8() base.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit data type (QLoRA, section 3).")
    bnb_4bit_use_double_quant: bool = Field(True, description="Quantize the quantization constants as well.")
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="dtype of matrix products; bfloat16 where the hardware has it, else float32."
    )

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit cannot both be true: set one of them to false")
        return self


class SearchConfig(_Model):
    """One search, whole."""

    model_name_or_path: str = Field(description="Hub id, local folder, or a .gguf file.")
    dataset: Any = Field(description="Hub id, .jsonl/.json/.csv/.parquet file, folder, or a datasets.Dataset.")
    space: Any = Field("lora", description="Preset name, YAML path, mapping, SearchSpace, or function of a trial.")
    num_samples: int = Field(16, ge=1, le=MOST_SAMPLES, description="Trials.")
    registry: Path = Field(Path("registry.duckdb"), description="The DuckDB registry file.")
    model_revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    eval_dataset: Any = Field(None, description="Held-out rows; instead of eval_fraction.")
    eval_fraction: float = Field(0.1, gt=0, lt=1, description="Share of the dataset held out, by a seeded split.")
    metric: Literal["eval_loss"] = Field("eval_loss", description="What is optimised: mean held-out loss, nats/token.")
    mode: Literal["min", "max"] = Field("min", description="Direction of the metric.")
    sampler: Any = Field("tpe", description="'tpe', 'random', or an optuna sampler.")
    scheduler: Any = Field("asha", description="'asha', 'median', 'fifo', a Ray Tune scheduler, or None.")
    engine: Literal["packed", "trl"] | None = Field(
        None, description="'packed' trains many trials at once, 'trl' one SFTTrainer at a time; packed where it can."
    )
    slots_per_lane: int | None = Field(
        None, ge=1, le=256, description="Trials trained at once on one resident base; measured if unset."
    )
    max_concurrent_trials: int | None = Field(None, ge=1, description="Trials in flight; one a slot if unset.")
    time_budget_s: float | None = Field(None, gt=0, description="Seconds after which no step is started.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seeds the split, the sampler and every trial.")
    name: str | None = Field(None, description="Name of the search and of its run folder.")
    storage_path: Path | None = Field(None, description="Folder of run folders; '<registry>.runs' if unset.")
    keep_top: int = Field(3, ge=1, description="Best adapters that keep their files in the registry.")
    training: TrainingConfig = TrainingConfig()
    quantization: QuantizationConfig = QuantizationConfig()

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.name is not None and (not NAME_PATTERN.fullmatch(self.name) or ".." in self.name):
            raise ValueError(f"name must match {NAME_PATTERN.pattern} without '..', got {self.name!r}: choose another")
        if self.registry.suffix != ".duckdb":
            raise ValueError(f"registry must end in .duckdb, got {str(self.registry)!r}: rename it")
        for field, names in (("sampler", SAMPLERS), ("scheduler", SCHEDULERS)):
            value = getattr(self, field)
            # An object that a search was given stands in its record as '<Class>'.
            if isinstance(value, str) and value not in names and not value.startswith("<"):
                raise ValueError(f"{field} must be {', '.join(map(repr, names))} or an object, got {value!r}")
        if self.engine == "trl" and self.slots_per_lane not in (None, 1):
            raise ValueError(
                f"engine 'trl' trains one trial at a time, got slots_per_lane {self.slots_per_lane}: remove one of them"
            )
        if self.mode != "min":
            raise ValueError("mode must be 'min' for eval_loss: a lower loss is better")
        return self

    @property
    def storage(self) -> Path:
        """Folder that holds this search's run folder."""
        return (self.storage_path or self.registry.with_suffix(".runs")).expanduser().absolute()


def parse_config(values: Mapping[str, Any], *, source: str = "Search(...)") -> SearchConfig:
    """Check keywords or YAML values and return the configuration.

    Args:
        values: Field names to values; `training` and `quantization` may be mappings or models.
        source: What the values came from, for messages.

    Returns:
        The configuration.

    Raises:
        ConfigError: A field is unknown (the nearest known one is named), missing, or out of bounds.
    """
    try:
        return SearchConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(item) for item in error.errors())) from None


def load_config(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> SearchConfig:
    """Read a search file; `RANKLOOM_REGISTRY` and then `overrides` win over it.

    A relative dataset, space, registry or storage path in the file is relative to the current folder, as in a script.

    Raises:
        ConfigError: The file is missing, is not YAML, is not a mapping, or breaks a rule.
    """
    file = Path(path)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no search file at {str(file)!r}: give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the search file {str(file)!r}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a mapping of settings, got {type(values).__name__}")
    if registry := os.environ.get("RANKLOOM_REGISTRY"):
        values["registry"] = registry
    values.update({key: value for key, value in (overrides or {}).items() if value is not None})
    return parse_config(values, source=str(file))


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"training": TrainingConfig, "quantization": QuantizationConfig}
        known = list(models.get(str(error["loc"][0]), SearchConfig).model_fields)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"{place!r} is not a known setting; {hint}"
    if error["type"] == "missing":
        return f"{place!r} is required: add it"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{place}: {error['msg'][:1].lower()}{error['msg'][1:]}, got {error['input']!r}"
