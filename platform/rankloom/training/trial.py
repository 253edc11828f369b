"""What every engine needs of a trial: its settings, its adapter's configuration, and how it ends."""

from __future__ import annotations

import gc
import math
import resource
import sys
from typing import Any

import torch
from peft import LoraConfig

from rankloom.config import TrainingConfig
from rankloom.errors import RankloomError, TrainingError
from rankloom.training.exchange import Outcome
from rankloom.training.resident import ResidentBase, uses_gradient_checkpointing
from rankloom_spaces import SpaceError, resolve_target_modules


def lora_config(base: ResidentBase, params: dict[str, Any]) -> LoraConfig:
    """Build PEFT's configuration of a trial, with target modules resolved on the base at hand."""
    return LoraConfig(
        r=params["r"],
        lora_alpha=params["lora_alpha"],
        use_rslora=params["use_rslora"],
        lora_dropout=params["lora_dropout"],
        target_modules=resolve_target_modules(params["target_modules"], base.leaf_modules),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base.path),
    )


def varied(training: TrainingConfig, params: dict[str, Any]) -> TrainingConfig:
    """Return the settings with those that the space varies put in, checked again."""
    changes = {name: params[name] for name in params.keys() & TrainingConfig.model_fields.keys()}
    return TrainingConfig.model_validate({**training.model_dump(), **changes}) if changes else training


def arguments(training: TrainingConfig, params: dict[str, Any], base: ResidentBase, scratch: str) -> dict[str, Any]:
    """Return the `TrainingArguments` of a trial; mixed precision follows the base's compute dtype.

    Args:
        training: The trial's settings.
        params: Its configuration.
        base: The resident base.
        scratch: A folder that transformers asks for; nothing is kept there.
    """
    device = next(base.model.parameters()).device
    return {
        "output_dir": scratch,
        "max_steps": training.max_steps or -1,
        "num_train_epochs": training.num_train_epochs,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "learning_rate": params["learning_rate"],
        "lr_scheduler_type": training.lr_scheduler_type,
        # A share below one is a ratio: transformers 5 folded warmup_ratio into warmup_steps.
        "warmup_steps": training.warmup_ratio,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": training.optim or ("paged_adamw_32bit" if device.type == "cuda" else "adamw_torch"),
        "gradient_checkpointing": uses_gradient_checkpointing(training, device),
        "bf16": base.compute_dtype == torch.bfloat16,
        "fp16": base.compute_dtype == torch.float16,
        "use_cpu": device.type == "cpu",
        "seed": params["seed"],
        "data_seed": params["seed"],
        "report_to": "none",
    }


def failed(error: Exception) -> Outcome:
    """Return what an exception inside a trial is: that trial's outcome, with a message that says what to do."""
    if isinstance(error, RankloomError | SpaceError):
        return Outcome(status="failed", message=str(error))
    if is_out_of_memory(error):
        return Outcome(status="failed", message=f"out of memory: {_one_line(error)}; lower r or the batch size")
    return Outcome(status="failed", message=f"{type(error).__name__}: {_one_line(error)}")


def require_finite(name: str, value: float, step: int) -> None:
    """Raise unless a number is finite.

    Raises:
        TrainingError: It is not; the message names the step.
    """
    if not math.isfinite(value):
        raise TrainingError(f"{name} is {value} at step {step}: lower learning_rate or max_grad_norm")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception says that memory ran out."""
    # torch has a type of its own for this on accelerators only.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def release_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory_bytes() -> int:
    """Return the most memory used so far: on the GPU since it was last reset, on a CPU by the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def reset_peak_memory() -> None:
    """Begin to measure the GPU's peak anew; the peak of a process cannot be."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
