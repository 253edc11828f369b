"""Killed lanes in small: two kills in one search; the benchmark kills forty times."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_killed_lanes_lose_nothing_that_was_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = importlib.import_module("lane_kills").main(["--times", "2"])
    assert (found["kills"], found["lost"], found["kept_twice"], found["files_of_no_adapter"]) == (2, 0, 0, 0)
    assert found["acknowledged"] == 8 * 30 and found["trials_not_completed"] == 0
    assert found["adapters_verified"] == 2
