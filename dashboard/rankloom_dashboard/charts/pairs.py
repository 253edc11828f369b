"""Two parameters against each other: the field of values between trials, and how each trial ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from rankloom_dashboard import formats
from rankloom_dashboard.charts.axes import Axis
from rankloom_dashboard.charts.samples import Sample
from rankloom_dashboard.charts.style import COST_SCALE, lay_out, plain, with_unit
from rankloom_dashboard.leaderboard import Objective

_CELLS = 40  # along an axis of numbers
_NEAR = 0.3  # of an axis: no value is drawn further than this from the next trial
_SHARPNESS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PairInfo:
    """Trials in the plane of two parameters.

    Attributes:
        x: The one.
        y: The other.
        places: Where each trial lies.
        values: Its value.
        ranks: Its rank from 0, the best, to 1, the worst; those as good share the mean of their ranks.
        numbers: Its number.
    """

    x: Axis
    y: Axis
    places: tuple[tuple[float, float], ...]
    values: tuple[float, ...]
    ranks: tuple[float, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContourInfo:
    """The field of values: a grid in places of the axes, None where no trial is near."""

    pair: PairInfo
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    field: tuple[tuple[float | None, ...], ...]


def pair_info(samples: Sequence[Sample], x: Axis, y: Axis, objective: Objective) -> PairInfo:
    """Collects the trials that have a place on both axes."""
    found = []
    for sample in samples:
        at = x.place(sample.trial.params.get(x.name)), y.place(sample.trial.params.get(y.name))
        if at[0] is not None and at[1] is not None:
            found.append(((at[0], at[1]), sample))
    return PairInfo(
        x=x,
        y=y,
        places=tuple(place for place, _ in found),
        values=tuple(sample.value for _, sample in found),
        ranks=_ranks([objective.cost(sample.value) for _, sample in found]),
        numbers=tuple(sample.trial.number for _, sample in found),
    )


def _ranks(costs: Sequence[float]) -> tuple[float, ...]:
    order = sorted(costs)
    first = {cost: index for index, cost in reversed(list(enumerate(order)))}
    last = {cost: index for index, cost in enumerate(order)}
    most = max(len(costs) - 1, 1)
    return tuple((first[cost] + last[cost]) / 2 / most for cost in costs)


def contour_info(pair: PairInfo) -> ContourInfo:
    """Fills the plane between trials with the mean of their values, each weighted by how near it is.

    The weight is the inverse of the distance, cubed (Shepard, "A two-dimensional interpolation function for
    irregularly-spaced data", 1968), in shares of the axes as they are drawn. It passes through the trials, and never
    exceeds them.
    """
    xs, ys = _cells(pair.x), _cells(pair.y)
    if not pair.places:
        return ContourInfo(pair=pair, xs=tuple(xs), ys=tuple(ys), field=())
    at = np.array([[pair.x.share(x), pair.y.share(y)] for x, y in pair.places])
    values, across = np.array(pair.values), np.array([pair.x.share(x) for x in xs])
    rows = []
    for y in ys:  # row by row, as all distances at once of thousands of trials would fill the memory
        distances = np.hypot(across[:, None] - at[None, :, 0], pair.y.share(y) - at[None, :, 1])
        weights = 1 / np.maximum(distances, 1e-6) ** _SHARPNESS
        means = weights @ values / weights.sum(axis=1)
        near = distances.min(axis=1) <= _NEAR
        rows.append(tuple(float(mean) if known else None for mean, known in zip(means, near, strict=True)))
    return ContourInfo(pair=pair, xs=tuple(xs), ys=tuple(ys), field=tuple(rows))


def _cells(axis: Axis) -> list[float]:
    if axis.labels:
        return [float(index) for index in range(len(axis.labels))]
    space = np.geomspace if axis.log else np.linspace
    return [float(value) for value in space(axis.low, axis.high, _CELLS)]


def draw_contour(info: ContourInfo, objective: Objective) -> go.Figure:
    """Draws the field in colours, and the trials as points on it."""
    pair = info.pair
    figure = go.Figure()
    kind = go.Heatmap if pair.x.labels or pair.y.labels else go.Contour
    figure.add_trace(
        kind(
            x=info.xs,
            y=info.ys,
            z=info.field,
            colorscale=COST_SCALE,
            reversescale=not objective.lower_is_better,
            **_color_range(pair.values, objective),
            colorbar={"title": {"text": with_unit(objective.name), "side": "right"}, "thickness": 10},
            opacity=0.85,
            hoverinfo="skip",
            **({"ncontours": 16, "line": {"width": 0.5}} if kind is go.Contour else {}),
        )
    )
    figure.add_trace(_points(pair, objective, {"color": "#111827", "size": 7}))
    return _lay_out(figure, pair)


def _color_range(values: Sequence[float], objective: Objective) -> dict[str, float]:
    """Ends the colours where outliers begin, by Tukey's rule: one bad trial would leave all others the same colour."""
    costs = np.array([objective.cost(value) for value in values])
    if not costs.size:
        return {}
    lower, upper = np.quantile(costs, (0.25, 0.75))
    ends = objective.cost(float(costs.min())), objective.cost(float(min(costs.max(), upper + 1.5 * (upper - lower))))
    return {"zmin": min(ends), "zmax": max(ends)} if ends[0] != ends[1] else {}


def draw_rank(pair: PairInfo, objective: Objective) -> go.Figure:
    """Draws each trial in the colour of its rank, which shows what the values' own scale would hide."""
    figure = go.Figure()
    # The worst first, so that the best are drawn over them.
    order = sorted(range(len(pair.ranks)), key=lambda index: -pair.ranks[index])
    sorted_pair = PairInfo(
        x=pair.x,
        y=pair.y,
        places=tuple(pair.places[index] for index in order),
        values=tuple(pair.values[index] for index in order),
        ranks=tuple(pair.ranks[index] for index in order),
        numbers=tuple(pair.numbers[index] for index in order),
    )
    marker = {
        "color": sorted_pair.ranks,
        "colorscale": COST_SCALE,
        "cmin": 0,
        "cmax": 1,
        "size": 12,
        "colorbar": {
            "title": {"text": "rank", "side": "right"},
            "tickvals": [0, 0.5, 1],
            "ticktext": ["best", "median", "worst"],
            "thickness": 10,
        },
    }
    figure.add_trace(_points(sorted_pair, objective, marker))
    return _lay_out(figure, pair)


def _points(pair: PairInfo, objective: Objective, marker: dict[str, object]) -> go.Scatter:
    return go.Scatter(
        x=[x for x, _ in pair.places],
        y=[y for _, y in pair.places],
        mode="markers",
        marker={"line": {"width": 1, "color": "rgba(255, 255, 255, 0.8)"}, **marker},
        text=[
            f"trial {number}<br>{pair.x.title} {_written(pair.x, x)}<br>{pair.y.title} {_written(pair.y, y)}<br>"
            f"{objective.name} {value:.4f}"
            for number, (x, y), value in zip(pair.numbers, pair.places, pair.values, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )


def _written(axis: Axis, place: float) -> str:
    return plain(axis.labels[int(place)]) if axis.labels else formats.short(place)


def _lay_out(figure: go.Figure, pair: PairInfo) -> go.Figure:
    lay_out(figure, x="", y="", height=380)
    x, y = ({"automargin": True, "showgrid": False, "zeroline": False, **axis.layout()} for axis in (pair.x, pair.y))
    figure.update_layout(xaxis=x, yaxis=y)
    return figure
