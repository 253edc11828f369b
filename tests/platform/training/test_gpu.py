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
