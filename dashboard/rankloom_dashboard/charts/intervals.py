"""Losses of some adapters on the same rows, with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from rankloom_dashboard.adapters.intervals import MeasuredLoss
from rankloom_dashboard.charts.style import SERIES, lay_out, plain, with_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """An adapter's loss and the ends of its interval; they are the loss itself where none was recorded."""

    label: str
    loss: float
    low: float
    high: float
    recorded: bool
    place: int


def intervals_info(names: Sequence[str], measured: Sequence[MeasuredLoss | None]) -> tuple[Bar, ...]:
    """Collects the losses of the adapters that were measured on some rows.

    Args:
        names: The adapters.
        measured: An adapter's loss, or None, in the order of the names.

    Returns:
        One bar an adapter that was measured; `place` is its place among the names.
    """
    return tuple(
        Bar(
            label=name,
            loss=one.loss,
            low=one.loss if one.low is None else one.low,
            high=one.loss if one.high is None else one.high,
            recorded=one.low is not None and one.high is not None,
            place=place,
        )
        for place, (name, one) in enumerate(zip(names, measured, strict=True))
        if one is not None
    )


def draw_intervals(bars: Sequence[Bar]) -> go.Figure:
    """Draws a point and a bar an adapter, in the colours of the learning curves; the first is at the top."""
    figure = go.Figure()
    for row, bar in enumerate(bars):
        color = SERIES[bar.place % len(SERIES)][0]
        figure.add_trace(
            go.Scatter(
                x=[bar.loss],
                y=[row],
                mode="markers",
                marker={"color": color, "size": 10},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [bar.high - bar.loss],
                    "arrayminus": [bar.loss - bar.low],
                    "color": color,
                    "thickness": 2,
                },
                hovertemplate=f"{plain(bar.label)}<br>{_written(bar)}<extra></extra>",
                showlegend=False,
            )
        )
    lay_out(figure, x=f"{with_unit('eval loss')}, 95% interval", y="", height=80 + 34 * len(bars))
    figure.update_yaxes(
        tickvals=list(range(len(bars))),
        ticktext=[plain(bar.label) for bar in bars],
        range=[len(bars) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    return figure


def _written(bar: Bar) -> str:
    interval = f"95% [{bar.low:.4f}, {bar.high:.4f}]" if bar.recorded else "no interval recorded"
    return f"{bar.loss:.4f}, {interval}"
