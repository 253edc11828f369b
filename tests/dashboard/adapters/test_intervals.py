from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from rankloom_dashboard.adapters.intervals import measured_losses, promoted_change, with_interval, written
from rankloom_registry import EvaluationRecord, PromotionRecord

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
ROWS = {"source": "held-out.jsonl", "sha256": "ab" * 32, "rows": 48}
CHECKS: dict[str, Any] = {
    "dataset": ROWS,
    "adapter_loss": 2.1,
    "made": "full-precision",
    "delta": -0.05,
    "measured": {
        "held-out": {
            "rows": 48,
            "adapter": {"loss": 2.1, "interval": [2.0, 2.2]},
            "full-precision": {"delta": -0.05, "low": -0.08, "high": -0.01},
        }
    },
}


def evaluation(metrics: dict[str, Any], dataset: dict[str, Any] | None = None, hours: int = 0) -> EvaluationRecord:
    return EvaluationRecord(
        evaluation_id=f"e-{hours}",
        adapter_id="a",
        base_content_root="c0",
        dataset=ROWS if dataset is None else dataset,
        metrics=metrics,
        created_at=NOON + timedelta(hours=hours),
    )


def promotion(checks: dict[str, Any]) -> PromotionRecord:
    return PromotionRecord(
        promotion_id="p",
        adapter_id="a",
        status="done",
        recipe="full-precision",
        format="safetensors",
        output_path="out",
        output_sha256="",
        checks=checks,
        reason="",
        forced=False,
        alias=None,
        created_at=NOON,
    )


def test_an_interval_comes_from_an_evaluation_or_a_promotion_of_the_same_rows() -> None:
    plain = evaluation({"eval_loss": 2.11}, hours=2)
    with_ends = evaluation({"eval_loss": 2.12, "eval_loss_low": 2.05, "eval_loss_high": 2.19}, hours=-3)
    (alone,) = measured_losses([plain], []).values()
    assert (alone.loss, alone.low, alone.high, alone.rows) == (2.11, None, None, 48)
    (promoted,) = measured_losses([plain], [promotion(CHECKS)]).values()
    assert (promoted.loss, promoted.low, promoted.high) == (2.1, 2.0, 2.2)
    (newest,) = measured_losses([with_ends, plain], [promotion(CHECKS)]).values()
    assert newest == promoted
    later = replace(with_ends, created_at=NOON + timedelta(hours=1))
    assert [one.loss for one in measured_losses([later], [promotion(CHECKS)]).values()] == [2.12]


def test_other_rows_are_another_measurement() -> None:
    other = {"name": "other.jsonl"}
    found = measured_losses([evaluation({"eval_loss": 2.0}), evaluation({"eval_loss": 3.0}, other)], [])
    assert {one.dataset: one.loss for one in found.values()} == {"held-out.jsonl": 2.0, "other.jsonl": 3.0}


def test_a_part_of_the_rows_and_rows_that_were_cut_are_other_measurements() -> None:
    """Their hash is that of all rows, as text."""
    first = evaluation({"eval_loss": 3.0}, ROWS | {"rows": 5, "limit": 5})
    assert len(measured_losses([first, evaluation({"eval_loss": 2.0})], [])) == 2
    short, long = ({"max_length": length, "cut_rows": 3, "dropped_rows": 0} for length in (16, 64))
    cut = [evaluation({"eval_loss": 2.0}, ROWS | one) for one in (short, long)]
    assert len(measured_losses(cut, [])) == 2
    whole = [evaluation({"eval_loss": 2.0}, ROWS | one | {"cut_rows": 0}) for one in (short, long)]
    assert len(measured_losses(whole, [promotion(CHECKS)])) == 1


def test_what_is_no_number_is_no_measurement() -> None:
    odd = [{}, {"eval_loss": None}, {"eval_loss": math.nan}, {"eval_loss": "2"}, {"eval_loss": True}]
    assert measured_losses([evaluation(metrics) for metrics in odd], []) == {}
    half = evaluation({"eval_loss": 2.0, "eval_loss_low": 1.9})
    assert with_interval(*measured_losses([half], []).values()) == "2.0000"
    for checks in ({}, {"dataset": "x"}, {"dataset": ROWS}, {"dataset": ROWS, "adapter_loss": 2.0, "measured": [1]}):
        assert all(one.low is None for one in measured_losses([], [promotion(checks)]).values())


def test_figures_are_written_with_their_ends_where_there_are_any() -> None:
    assert written({"eval_loss": 2.0, "eval_loss_low": 1.5, "eval_loss_high": 2.5}, "eval_loss") == (
        "2.0000 [1.5000, 2.5000]"
    )
    assert written({"eval_loss": 2}, "eval_loss") == "2.0000"
    assert written({}, "eval_loss") == with_interval(None) == "–"
    assert promoted_change(CHECKS) == "-0.0500 [-0.0800, -0.0100]"
    assert promoted_change({"delta": 0.1}) == "+0.1000"
    assert promoted_change({}) == "–"
