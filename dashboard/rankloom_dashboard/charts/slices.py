"""The value of each trial against one parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from rankloom_dashboard.charts.axes import Axis
from rankloom_dashboard.charts.samples import Sample
from rankloom_dashboard.charts.style import ROLE_COLORS, lay_out, scale, with_unit
from rankloom_dashboard.leaderboard import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceInfo:
    """Trials along one parameter: where each lies, its value, its number, and whether it ran to its end."""

    axis: Axis
    places: tuple[float, ...]
    values: tuple[float, ...]
    numbers: tuple[int, ...]
    completed: tuple[bool, ...]


def slice_info(samples: Sequence[Sample], axis: Axis) -> SliceInfo:
    """Collects the trials that have a place on an axis."""
    found = [
        (place, sample) for sample in samples if (place := axis.place(sample.trial.params.get(axis.name))) is not None
    ]
    return SliceInfo(
        axis=axis,
        places=tuple(place for place, _ in found),
        values=tuple(sample.value for _, sample in found),
        numbers=tuple(sample.trial.number for _, sample in found),
        completed=tuple(sample.trial.status == "completed" for _, sample in found),
    )


def draw_slice(info: SliceInfo, objective: Objective, *, log: bool = False) -> go.Figure:
    """Draws a point a trial; the later, the stronger its colour."""
    figure = go.Figure(
        go.Scatter(
            x=info.places,
            y=info.values,
            mode="markers",
            marker={
                "size": 8,
                "color": ROLE_COLORS["best"],
                "opacity": _strengths(info.numbers),
                "symbol": ["circle" if completed else "circle-open" for completed in info.completed],
            },
            text=[f"trial {number}" for number in info.numbers],
            hovertemplate=f"%{{text}}<br>{objective.name} %{{y:.4f}}<extra></extra>",
            showlegend=False,
        )
    )
    scale(lay_out(figure, x="", y=with_unit(objective.name), height=240), {"y"} if log else ())
    return figure.update_layout(xaxis=info.axis.layout())


def _strengths(numbers: Sequence[int]) -> list[float]:
    last = max(numbers, default=0)
    return [0.35 + 0.65 * number / last if last else 1.0 for number in numbers]
