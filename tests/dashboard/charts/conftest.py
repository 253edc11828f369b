from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rankloom_registry import SearchRecord, TrialRecord, TrialSpan

START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)


@pytest.fixture
def at() -> Callable[[float], datetime]:
    """The moment so many seconds after the search began."""
    return lambda seconds: START + timedelta(seconds=seconds)


@pytest.fixture
def search() -> Callable[..., SearchRecord]:
    def make(**changes: Any) -> SearchRecord:
        known: dict[str, Any] = {
            "search_id": "s",
            "name": "s",
            "status": "completed",
            "message": "",
            "base_content_root": "c0" * 32,
            "base_identity": "tiny",
            "dataset": {},
            "config": {},
            "metric": "eval_loss",
            "mode": "min",
            "num_samples": 8,
            "seed": 0,
            "created_at": START,
            "ended_at": None,
            "trials": 0,
            "finished_trials": 0,
            "best_value": None,
        }
        return SearchRecord(**known | changes)

    return make


@pytest.fixture
def trial() -> Callable[..., TrialRecord]:
    """Makes a trial that ended ten seconds after the one before it."""

    def make(number: int, loss: float | None = None, status: str = "completed", **changes: Any) -> TrialRecord:
        known: dict[str, Any] = {
            "trial_id": f"t{number}",
            "search_id": "s",
            "number": number,
            "status": status,
            "params": {},
            "message": "",
            "attempts": 1,
            "lane": "lane-0",
            "eval_loss": loss,
            "train_loss": None,
            "steps": 60,
            "train_tokens": 1000,
            "peak_memory_bytes": 2**30,
            "wall_s": 10.0,
            "created_at": START + timedelta(seconds=10 * number),
            "ended_at": None if status == "running" else START + timedelta(seconds=10 * (number + 1)),
            "adapter_id": None,
        }
        return TrialRecord(**known | changes)

    return make


@pytest.fixture
def span() -> Callable[..., TrialSpan]:
    def make(
        number: int, start: float, end: float | None, lane: str = "lane-0", slot: int | None = 0, **changes: Any
    ) -> TrialSpan:
        known: dict[str, Any] = {
            "trial_id": f"t{number}",
            "number": number,
            "attempt": 1,
            "lane": lane,
            "slot": slot,
            "started_at": START + timedelta(seconds=start),
            "ended_at": None if end is None else START + timedelta(seconds=end),
            "status": "running" if end is None else "completed",
        }
        return TrialSpan(**known | changes)

    return make
