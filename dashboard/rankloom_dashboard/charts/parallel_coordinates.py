"""Every trial as a line across its parameters, to the value that it reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from rankloom_dashboard.charts.axes import Axis
from rankloom_dashboard.charts.samples import Sample
from rankloom_dashboard.charts.style import COST_SCALE
from rankloom_dashboard.leaderboard import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One upright of the chart: where each line crosses it, and what is written beside it; log scales are taken."""

    title: str
    values: tuple[float, ...]
    low: float
    high: float
    ticks: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelCoordinatesInfo:
    """The uprights, the last of which is the objective, and each line's cost, of which lower is better."""

    dimensions: tuple[Dimension, ...]
    costs: tuple[float, ...]


def parallel_coordinates_info(
    samples: Sequence[Sample], axes: Sequence[Axis], objective: Objective
) -> ParallelCoordinatesInfo:
    """Collects the lines of the trials that have a place on every axis.

    Args:
        samples: The trials.
        axes: The parameters in which they differ.
        objective: What the last upright is.
    """
    lines = [
        (places, sample)
        for sample in samples
        if None not in (places := [axis.place(sample.trial.params.get(axis.name)) for axis in axes])
    ]
    dimensions = [
        _dimension(axis, [place for places, _ in lines if (place := places[index]) is not None])
        for index, axis in enumerate(axes)
    ]
    values = tuple(sample.value for _, sample in lines)
    if values:
        dimensions.append(Dimension(title=objective.name, values=values, low=min(values), high=max(values)))
    # What is better is drawn over what is worse.
    order = sorted(range(len(values)), key=lambda index: -objective.cost(values[index]))
    return ParallelCoordinatesInfo(
        dimensions=tuple(
            Dimension(
                title=item.title,
                values=tuple(item.values[index] for index in order),
                low=item.low,
                high=item.high,
                ticks=item.ticks,
                labels=item.labels,
            )
            for item in dimensions
        ),
        costs=tuple(objective.cost(values[index]) for index in order),
    )


def _dimension(axis: Axis, places: Sequence[float]) -> Dimension:
    def scaled(value: float) -> float:
        return math.log10(value) if axis.log else value

    layout = axis.layout()
    ticks = tuple(scaled(tick) for tick in layout.get("tickvals", ()))
    return Dimension(
        title=axis.title,
        values=tuple(scaled(place) for place in places),
        low=scaled(axis.low),
        high=scaled(axis.high),
        ticks=ticks,
        labels=tuple(layout.get("ticktext", ())),
    )


def draw_parallel_coordinates(info: ParallelCoordinatesInfo) -> go.Figure:
    """Draws the lines by their cost; a stretch of an upright can be dragged over to keep the lines through it."""
    figure = go.Figure(
        go.Parcoords(
            dimensions=[
                {
                    "label": item.title,
                    "values": item.values,
                    "range": _range(item.low, item.high),
                    **({"tickvals": item.ticks, "ticktext": item.labels} if item.ticks else {}),
                }
                for item in info.dimensions
            ],
            # Of lines that cross, Plotly draws those of the higher colour on top.
            line={"color": [-cost for cost in info.costs], "colorscale": COST_SCALE, "reversescale": True},
            labelangle=-18,
            labelside="bottom",
            labelfont={"size": 12},
            tickfont={"size": 11},
            unselected={"line": {"opacity": 0.04}},
        )
    )
    figure.update_layout(height=380, margin={"l": 48, "r": 48, "t": 24, "b": 64}, uirevision="kept")
    return figure


def _range(low: float, high: float) -> list[float]:
    return [low, high] if high > low else [low - 0.5, high + 0.5]
