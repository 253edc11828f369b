from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from rankloom.training.packed.batches import Batches


class Recording(torch.nn.Module, TrainerCallback):
    """Notes which rows a trainer feeds it, batch by batch and step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps: list[list[list[int]]] = [[]]

    def forward(self, row: torch.Tensor, **kwargs: Any) -> dict[str, torch.Tensor]:
        self.steps[-1].append(row.tolist())
        return {"loss": self.weight * row.sum()}

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append([])


@pytest.mark.parametrize(
    ("rows", "batch_size", "accumulation", "seed"), [(10, 3, 1, 0), (10, 3, 3, 7), (5, 2, 4, 1), (6, 3, 2, 2**31 - 1)]
)
def test_rows_come_as_the_trainer_draws_them(
    tmp_path: Path, rows: int, batch_size: int, accumulation: int, seed: int
) -> None:
    batches = Batches(rows=rows, batch_size=batch_size, accumulation=accumulation, seed=seed)
    count = 3 * batches.steps_per_epoch + 1
    recording = Recording()
    trainer = Trainer(
        model=recording,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=count,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            seed=seed,
            data_seed=seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=[{"row": number} for number in range(rows)],
        callbacks=[recording],
    )
    trainer.train()
    assert recording.steps[:-1] == [batches.of_step(step) for step in range(count)]


def test_a_step_depends_on_no_other(subtests: pytest.Subtests) -> None:
    fresh = Batches(rows=7, batch_size=2, accumulation=2, seed=3)
    walked = Batches(rows=7, batch_size=2, accumulation=2, seed=3)
    orders = [walked.of_step(step) for step in range(6)]
    assert [len(batch) for batch in orders[1]] == [2, 1]
    assert fresh.of_step(5) == orders[5]
    for epoch in range(3):
        with subtests.test(epoch=epoch):
            step = epoch * fresh.steps_per_epoch
            seen = [
                row for batches in orders[step : step + fresh.steps_per_epoch] for batch in batches for row in batch
            ]
            assert sorted(seen) == list(range(7))
