from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rankloom.promotion.drift import Reference

ROWS = [
    {"input_ids": [3, 1, 4, 1, 5, 9, 2], "labels": [-100, -100, 4, 1, 5, 9, 2]},
    {"input_ids": [6, 5, 3], "labels": [6, 5, 3]},
    {"input_ids": [5, 8, 9, 7, 9], "labels": [-100, 8, -100, 7, 9]},
]
POSITIONS = 5 + 2 + 3


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    first, second = (AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.3)
    return first, second


def test_a_model_is_where_it_is(models: tuple[Any, Any], tmp_path: Path) -> None:
    first, _ = models
    reference = Reference(first, ROWS, tmp_path / "kept", batch_size=2, dtype=None)
    drift = reference.compare(first, dtype=None)
    assert (drift.delta, drift.low, drift.high, drift.top1, drift.positions) == (0, 0, 0, 1, POSITIONS)
    assert abs(drift.kl) < 1e-6 and drift.loss == reference.evaluation.loss


def test_divergence_is_what_the_definition_says(models: tuple[Any, Any], tmp_path: Path) -> None:
    first, second = models
    drift = Reference(first, ROWS, tmp_path / "kept", batch_size=3, dtype=None).compare(second, dtype=None)
    divergence, same, nll = 0.0, 0, [0.0, 0.0]
    for row in ROWS:
        with torch.no_grad():
            p, q = (m(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1) for m in models)
        for position, label in enumerate(row["labels"][1:]):
            if label != -100:
                divergence += float((p[position].exp() * (p[position] - q[position])).sum())
                same += int(p[position].argmax() == q[position].argmax())
                nll = [nll[0] - float(p[position, label]), nll[1] - float(q[position, label])]
    assert drift.kl == pytest.approx(divergence / POSITIONS, rel=1e-4) and drift.kl > 0.001
    assert drift.top1 == same / POSITIONS < 1
    assert drift.delta == pytest.approx((nll[1] - nll[0]) / POSITIONS, abs=1e-5) and drift.delta != 0
    assert drift.low is not None and drift.high is not None and drift.low <= drift.delta <= drift.high
    assert drift.interval is not None and drift.interval[0] < drift.loss < drift.interval[1]


def test_of_many_positions_a_part_is_kept(models: tuple[Any, Any], tmp_path: Path) -> None:
    first, second = models
    width = first.get_output_embeddings().weight.shape[0]
    reference = Reference(first, ROWS, tmp_path / "kept", batch_size=2, dtype=None, most_bytes=4 * 4 * width + 3)
    assert (tmp_path / "kept").stat().st_size == 4 * 4 * width
    drift = reference.compare(second, dtype=None)
    whole = Reference(first, ROWS, tmp_path / "whole", batch_size=2, dtype=None).compare(second, dtype=None)
    assert drift.positions == 4 and drift.delta == whole.delta and drift.kl != whole.kl
