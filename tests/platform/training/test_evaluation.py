from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from rankloom.training.evaluation import evaluate_loss


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> torch.nn.Module:
    loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return loaded


def test_the_loss_is_transformers_own_weighted_by_tokens(model: torch.nn.Module, rows: tuple[Dataset, Dataset]) -> None:
    found = evaluate_loss(model, rows[1], batch_size=4, autocast_dtype=None)
    model.eval()
    total = count = 0.0
    for index, row in enumerate(rows[1]):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=labels).loss)
        tokens = int((labels[0, 1:] != -100).sum())
        assert found.row_tokens[index] == tokens
        assert found.row_nll[index] == pytest.approx(loss * tokens, rel=1e-5)
        total, count = total + loss * tokens, count + tokens
    assert found.loss == pytest.approx(total / count, rel=1e-5)


def test_neither_batch_size_nor_order_matters(model: torch.nn.Module, rows: tuple[Dataset, Dataset]) -> None:
    one = evaluate_loss(model, rows[1], batch_size=1, autocast_dtype=None)
    all_at_once = evaluate_loss(model, rows[1], batch_size=100, autocast_dtype=None)
    assert all_at_once.row_nll == pytest.approx(one.row_nll, rel=1e-5)
    turned = rows[1].select(list(reversed(range(len(rows[1])))))
    backwards = evaluate_loss(model, turned, batch_size=3, autocast_dtype=None)
    assert backwards.row_tokens == tuple(reversed(one.row_tokens))
    assert backwards.row_nll == pytest.approx(tuple(reversed(one.row_nll)), rel=1e-5)
    assert backwards.loss == pytest.approx(one.loss, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(model: torch.nn.Module, rows: tuple[Dataset, Dataset], training: bool) -> None:
    model.train(training)
    seen: list[tuple[int, int]] = []
    evaluate_loss(model, rows[1], batch_size=5, autocast_dtype=torch.bfloat16, on_batch=lambda *done: seen.append(done))
    assert model.training is training
    count = len(rows[1])
    assert seen == [(min(done, count), count) for done in range(5, count + 5, 5)]
    assert all(parameter.grad is None for parameter in model.parameters())
