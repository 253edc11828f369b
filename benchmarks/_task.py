"""What is searched, whoever searches it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankloom.config import QuantizationConfig, TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is searched.

    Attributes:
        model: Folder of the base.
        dataset: Rows of text.
        training: Of every trial.
        quantization: Of the base.
        axes: The grid.
        scheduler: Of our search: 'fifo' or 'asha'.
        slots: Of our search; None lets its lane measure.
        concurrent: Ray Tune's trials at a time, which share the processors, or the GPU.
    """

    model: Path
    dataset: Path
    training: TrainingConfig
    quantization: QuantizationConfig
    axes: dict[str, list[Any]]
    scheduler: str = "fifo"
    slots: int | None = None
    concurrent: int = 1
