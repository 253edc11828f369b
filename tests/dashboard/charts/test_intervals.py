from __future__ import annotations

from datetime import UTC, datetime

from rankloom_dashboard.adapters.intervals import MeasuredLoss
from rankloom_dashboard.charts.intervals import draw_intervals, intervals_info
from rankloom_dashboard.charts.style import SERIES


def measured(loss: float, low: float | None, high: float | None) -> MeasuredLoss:
    at = datetime(2026, 3, 2, tzinfo=UTC)
    return MeasuredLoss(base="", dataset="d", key="d", rows=None, loss=loss, low=low, high=high, at=at)


def test_a_bar_an_adapter_that_was_measured_in_its_own_colour() -> None:
    bars = intervals_info(["<i>a</i>", "b", "c"], [measured(2.0, 1.5, 2.75), None, measured(3.0, None, None)])
    assert [(bar.place, bar.low, bar.high) for bar in bars] == [(0, 1.5, 2.75), (2, 3.0, 3.0)]
    first, second = draw_intervals(bars).data
    assert (first.error_x.array[0], first.error_x.arrayminus[0]) == (0.75, 0.5)
    assert second.marker.color == SERIES[2][0]
    assert "&lt;i&gt;" in first.hovertemplate and "2.0000, 95% [1.5000, 2.7500]" in first.hovertemplate
    assert "3.0000, no interval recorded" in second.hovertemplate


def test_nothing_measured_is_nothing_drawn() -> None:
    assert intervals_info(["a"], [None]) == ()
    assert draw_intervals(()).data == ()


def test_six_curves_are_told_apart_by_colour_and_by_dash() -> None:
    assert len({color for color, _ in SERIES}) == len({dash for _, dash in SERIES}) == 6
