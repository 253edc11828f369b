from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from rankloom.config import TrainingConfig
from rankloom.training.exchange import LocalExchange, Outcome, TrialSpec
from rankloom.training.packed.engine import rows_of, targets_of
from rankloom.training.packed.model import PackedModel
from rankloom.training.packed.slot import Slot
from rankloom.training.resident import ResidentBase


@pytest.fixture
def slot_of(rows: tuple[Dataset, Dataset], trial: Callable[..., TrialSpec], tmp_path: Path) -> Callable[..., Slot]:
    """Makes a slot of ten steps; keyword arguments change its configuration."""

    def make(base: ResidentBase, **changes: Any) -> Slot:
        return Slot(trial(**changes), base, TrainingConfig(max_steps=10, max_length=48), len(rows[0]), tmp_path)

    return make


@pytest.fixture
def take_steps(rows: tuple[Dataset, Dataset]) -> Callable[..., list[float]]:
    """Takes steps of a slot, and returns their losses."""
    train_rows = rows_of(rows[0])

    def take(model: PackedModel, slot: Slot, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            window = [[train_rows[index] for index in batch] for batch in slot.batches.of_step(slot.step)]
            for batch in window:
                (loss,) = model.train([(slot, batch, sum(targets_of(row) for each in window for row in each))])
                slot.add_loss(loss, sum(len(ids) for ids, _ in batch))
            losses.append(slot.take_step())
        return losses

    return take


@pytest.fixture
def alone(run_packed: Callable[..., LocalExchange]) -> Callable[..., Outcome]:
    """Runs one trial in one slot, six steps with an evaluation after every second one."""
    training = TrainingConfig(max_steps=6, eval_steps=2, max_length=48)

    def run(base: ResidentBase, spec: TrialSpec) -> Outcome:
        return run_packed(base, spec, slots=1, training=training).outcomes[spec.trial_id]

    return run
