"""Losses on held-out rows with their bootstrap intervals, wherever one was recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rankloom_dashboard import formats
from rankloom_registry import EvaluationRecord, PromotionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLoss:
    """A loss on some rows.

    Attributes:
        base: Content root of the base on which it was measured; empty if that was not recorded.
        dataset: What the rows came from, as it was recorded.
        key: What the same tokens of the same rows have in common.
        rows: How many there are, if that was recorded.
        loss: Nats a token.
        low: Lower end of its 95% interval; None if none was recorded.
        high: Its upper end.
        at: When it was recorded.
    """

    base: str
    dataset: str
    key: str
    rows: int | None
    loss: float
    low: float | None
    high: float | None
    at: datetime


def measured_losses(
    evaluations: Sequence[EvaluationRecord], promotions: Sequence[PromotionRecord]
) -> dict[str, MeasuredLoss]:
    """Collects an adapter's losses on each set of rows: its evaluations, and what its promotions measured it at.

    Args:
        evaluations: The adapter's.
        promotions: The adapter's.

    Returns:
        By `MeasuredLoss.key`; of several, the newest with an interval, else the newest.
    """
    found = [
        _measured(
            one.dataset,
            one.metrics.get("eval_loss"),
            _interval(one.metrics, "eval_loss"),
            base=one.base_content_root,
            at=one.created_at,
        )
        for one in evaluations
    ]
    for promotion in promotions:
        checks = promotion.checks
        dataset, proof = checks.get("dataset"), checks.get("base")
        if isinstance(dataset, dict):
            base = str(proof.get("content_root") or "") if isinstance(proof, dict) else ""
            loss, interval = checks.get("adapter_loss"), _of_promotion(checks)
            found.append(_measured(dataset, loss, interval, base=base, at=promotion.created_at))
    newest_last = sorted(filter(None, found), key=lambda one: (one.low is not None, one.at))
    return {one.key: one for one in newest_last}


def written(values: Mapping[str, Any], name: str, *, sign: str = "") -> str:
    """Writes a figure with its interval, where `values` holds `name_low` and `name_high` as well."""
    value = _number(values.get(name))
    return formats.MISSING if value is None else _written(value, *_interval(values, name), sign=sign)


def promoted_change(checks: Mapping[str, Any]) -> str:
    """Writes by how much a promoted model's loss lies above the adapter's on the held-out rows, with its interval."""
    found: Any = checks
    for key in ("measured", "held-out", str(checks.get("made"))):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        return written(checks, "delta", sign="+")
    ends = {f"delta_{end}": found.get(end) for end in ("low", "high")}
    return written({"delta": found.get("delta"), **ends}, "delta", sign="+")


def with_interval(one: MeasuredLoss | None) -> str:
    """Writes a loss with its interval, if there is one."""
    return formats.MISSING if one is None else _written(one.loss, one.low, one.high)


def _written(value: float, low: float | None, high: float | None, *, sign: str = "") -> str:
    interval = "" if low is None or high is None else f" [{low:{sign}.4f}, {high:{sign}.4f}]"
    return f"{value:{sign}.4f}{interval}"


def _measured(
    dataset: Mapping[str, Any], loss: Any, interval: tuple[float | None, float | None], *, base: str, at: datetime
) -> MeasuredLoss | None:
    value = _number(loss)
    if value is None:
        return None
    rows, name = dataset.get("rows"), formats.value(dataset.get("source") or dataset.get("name") or dict(dataset))
    # The hash is that of all rows, as text: how many were taken, and where they were cut, may differ.
    tokens = dataset.get("max_length") if dataset.get("cut_rows") or dataset.get("dropped_rows") else None
    return MeasuredLoss(
        base=base,
        dataset=formats.cut(name, 300),
        key=formats.cut(json.dumps([dataset.get("sha256") or name, rows, tokens], default=str), 400),
        rows=rows if isinstance(rows, int) else None,
        loss=value,
        low=interval[0],
        high=interval[1],
        at=at,
    )


def _interval(values: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    low, high = _number(values.get(f"{name}_low")), _number(values.get(f"{name}_high"))
    return (None, None) if low is None or high is None else (low, high)


def _of_promotion(checks: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The interval of the adapter as trained: measured -> held-out -> adapter -> interval."""
    found: Any = checks
    for key in ("measured", "held-out", "adapter", "interval"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != 2:
        return None, None
    low, high = map(_number, found)
    return (None, None) if low is None or high is None else (low, high)


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None
