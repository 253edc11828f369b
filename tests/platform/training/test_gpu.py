"""What only a CUDA device can show: the same engine there, with paged AdamW and gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rankloom.training.exchange import LocalExchange
from rankloom.training.resident import ResidentBase

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: training on a GPU is not tested here"),
]


def test_trials_on_a_gpu_leave_the_base_as_it_was(
    resident: ResidentBase, trial: Callable[..., Any], run_trials: Callable[..., LocalExchange]
) -> None:
    assert next(resident.model.parameters()).is_cuda
    exchange = run_trials(resident, trial("one"), trial("two", learning_rate=1e-3))
    outcomes = [exchange.outcomes[name] for name in ("one", "two")]
    assert [outcome.status for outcome in outcomes] == ["completed", "completed"]
    assert all(0 < outcome.metrics["peak_memory_bytes"] < 2**33 for outcome in outcomes)
    resident.assert_unchanged()


def test_packed_on_a_gpu_is_alone_but_for_rounding(
    resident: ResidentBase,
    trial: Callable[..., Any],
    run_packed: Callable[..., LocalExchange],
    run_trials: Callable[..., LocalExchange],
) -> None:
    """Batched low-rank products sum in another order than one adapter's; on a GPU they are the rule."""
    changes = {"learning_rate": 1e-3, "lora_dropout": 0.0}
    specs = [
        trial("one", **changes),
        trial("two", r=8, seed=1, **changes),
        trial("three", target_modules="mlp", **changes),
    ]
    packed, reference = run_packed(resident, *specs, slots=3), run_trials(resident, *specs)
    for spec in specs:
        name = spec.trial_id
        alone = run_packed(resident, spec, slots=1).outcomes[name]
        assert packed.outcomes[name].status == "completed", packed.outcomes[name].message
        loss = packed.outcomes[name].metrics["eval_loss"]
        assert loss == pytest.approx(alone.metrics["eval_loss"], rel=2e-3)
        assert loss == pytest.approx(reference.outcomes[name].metrics["eval_loss"], rel=1e-2)
    resident.assert_unchanged()
