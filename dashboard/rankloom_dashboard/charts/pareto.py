"""What a better value costs: trials by two of value, memory, time and size; those that no other beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import plotly.graph_objects as go

from rankloom_dashboard import formats
from rankloom_dashboard.charts.samples import Sample
from rankloom_dashboard.charts.style import ROLE_COLORS, Scale, lay_out, scale, time_unit, with_unit
from rankloom_dashboard.leaderboard import Objective
from rankloom_registry import TrialRecord

Cost = Literal["loss", "peak memory", "time", "adapter size"]
COSTS: tuple[Cost, ...] = ("loss", "peak memory", "time", "adapter size")
_UNITS = {"peak memory": (2**30, "GiB"), "adapter size": (2**20, "MiB")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """One trial: what it reached by each of the two measures, when it ended, and whether another beats it."""

    number: int
    x: float
    y: float
    at: datetime
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoInfo:
    """Trials by two measures.

    Attributes:
        trades: Those that have both; the best are those that no other is as good as in both and better in one.
        x: What x is.
        y: What y is.
        missing: How many samples lack one of them.
    """

    trades: tuple[Trade, ...]
    x: Cost
    y: Cost
    missing: int

    @property
    def front(self) -> list[Trade]:
        """The best, by x."""
        return sorted((trade for trade in self.trades if trade.best), key=lambda trade: (trade.x, trade.y))


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervolumeInfo:
    """How far the best trials came: seconds since the search began, and the share of the whole that they dominate."""

    seconds: tuple[float, ...]
    shares: tuple[float, ...]


def pareto_info(
    samples: Sequence[Sample],
    objective: Objective,
    *,
    x: Cost,
    y: Cost,
    sizes: Mapping[str, float],
    until: datetime,
) -> ParetoInfo:
    """Sets two measures of trials against each other; less is better of each, unless the search maximises its value.

    Args:
        samples: The trials.
        objective: What `loss` is.
        x: The one measure.
        y: The other.
        sizes: The size of each trial's adapter in bytes by trial_id, as far as it is known.
        until: When trials that have no end are taken to end.
    """

    def measure(sample: Sample, what: Cost) -> float | None:
        match what:
            case "loss":
                return sample.value
            case "peak memory":
                return sample.trial.peak_memory_bytes
            case "time":
                return sample.trial.wall_s
            case "adapter size":
                return sizes.get(sample.trial.trial_id)

    found = [
        (a, b, sample)
        for sample in samples
        if (a := measure(sample, x)) is not None and (b := measure(sample, y)) is not None
    ]
    costs = [(_cost(a, x, objective), _cost(b, y, objective)) for a, b, _ in found]
    best = _undominated(costs)
    return ParetoInfo(
        trades=tuple(
            Trade(number=sample.trial.number, x=a, y=b, at=sample.trial.ended_at or until, best=mine)
            for (a, b, sample), mine in zip(found, best, strict=True)
        ),
        x=x,
        y=y,
        missing=len(samples) - len(found),
    )


def adapter_sizes(trials: Sequence[TrialRecord], rank_bytes: Mapping[str, float]) -> dict[str, float]:
    """Works out how large the adapters of trials are, also of those that were not kept: a LoRA grows with its rank.

    Args:
        trials: The trials.
        rank_bytes: Bytes that one rank takes, by target modules.

    Returns:
        Bytes of weights by trial_id, of the trials whose target modules are known.
    """
    found = {}
    for trial in trials:
        modules, r = trial.params.get("target_modules"), trial.params.get("r")
        name = "+".join(map(str, modules)) if isinstance(modules, list) else modules
        if isinstance(r, int) and isinstance(name, str) and name in rank_bytes:
            found[trial.trial_id] = r * rank_bytes[name]
    return found


def _cost(value: float, what: Cost, objective: Objective) -> float:
    return objective.cost(value) if what == "loss" else value


def _undominated(costs: Sequence[tuple[float, float]]) -> list[bool]:
    """Tells the points that no other is as low as in both and lower in one; of equal points each stays."""
    best = set()
    lowest = float("inf")
    for point in sorted(set(costs)):
        if point[1] < lowest:
            best.add(point)
            lowest = point[1]
    return [point in best for point in costs]


def hypervolume_info(info: ParetoInfo, objective: Objective, began: datetime) -> HypervolumeInfo:
    """Follows the area that the trials so far dominate, within the rectangle that all of them span.

    The reference point is the worst of each measure, so a share of 1 would be one trial that is the best in both.

    Args:
        info: Trials by two measures.
        objective: What `loss` is.
        began: When the search began.
    """
    costs = [(_cost(t.x, info.x, objective), _cost(t.y, info.y, objective)) for t in info.trades]
    if not costs:
        return HypervolumeInfo(seconds=(), shares=())
    (left, right), (bottom, top) = ((min(side), max(side)) for side in zip(*costs, strict=True))
    whole = (right - left) * (top - bottom)
    if whole == 0:
        return HypervolumeInfo(seconds=(), shares=())
    seconds, shares = [], []
    front: list[tuple[float, float]] = []
    area = 0.0
    for trade, (x, y) in sorted(zip(info.trades, costs, strict=True), key=lambda pair: pair[0].at):
        if not any(best_x <= x and best_y <= y for best_x, best_y in front):  # else it adds nothing
            front = [(x, y), *(best for best in front if best[0] < x or best[1] < y)]
            area = _area(front, right, top)
        seconds.append((trade.at - began).total_seconds())
        shares.append(area / whole)
    return HypervolumeInfo(seconds=tuple(seconds), shares=tuple(shares))


def _area(costs: Sequence[tuple[float, float]], right: float, top: float) -> float:
    """The area between points and the corner (right, top), both of which are the worst."""
    area, height = 0.0, top
    for x, y in sorted(costs):
        if y < height:
            area += (right - x) * (height - y)
            height = y
    return area


def draw_pareto(info: ParetoInfo, objective: Objective, *, log: frozenset[Scale] = frozenset()) -> go.Figure:
    """Draws the trials, and the best of them joined by a step line."""
    figure = go.Figure()
    (xs, x_title), (ys, y_title) = (
        _axis([getattr(trade, side) for trade in info.trades], what, objective)
        for side, what in (("x", info.x), ("y", info.y))
    )
    for name, wanted, color, symbol in (
        ("beaten", False, ROLE_COLORS["stopped"], "circle-open"),
        ("not beaten", True, ROLE_COLORS["best"], "circle"),
    ):
        mine = [index for index, trade in enumerate(info.trades) if trade.best == wanted]
        mine.sort(key=lambda index: (xs[index], ys[index]))
        figure.add_trace(
            go.Scatter(
                x=[xs[index] for index in mine],
                y=[ys[index] for index in mine],
                mode="lines+markers" if wanted else "markers",
                line={"shape": _corner(info, objective), "width": 1.5, "color": color},
                marker={"color": color, "size": 10 if wanted else 8, "symbol": symbol},
                name=name,
                text=[_hover(info, info.trades[index], objective) for index in mine],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    figure.update_layout(showlegend=True)
    return scale(lay_out(figure, x=x_title, y=y_title, height=360), log)


def _corner(info: ParetoInfo, objective: Objective) -> str:
    """Which way the step line turns, so that the dominated side lies behind it."""
    upwards = not objective.lower_is_better and info.x == "loss"
    return "vh" if upwards else "hv"


def _axis(values: Sequence[float], what: Cost, objective: Objective) -> tuple[list[float], str]:
    if what == "loss":
        return list(values), with_unit(objective.name)
    length, unit = time_unit(max(values, default=0)) if what == "time" else _UNITS[what]
    return [value / length for value in values], f"{what}, {unit}"


def _hover(info: ParetoInfo, trade: Trade, objective: Objective) -> str:
    def written(value: float, what: Cost) -> str:
        match what:
            case "loss":
                return f"{objective.name} {value:.4f}"
            case "time":
                return f"{what} {formats.duration(value)}"
            case _:
                return f"{what} {formats.size(round(value))}"

    return f"trial {trade.number}<br>{written(trade.x, info.x)}<br>{written(trade.y, info.y)}"


def draw_hypervolume(info: HypervolumeInfo) -> go.Figure:
    """Draws the share as a step line over time."""
    length, unit = time_unit(max(info.seconds, default=0))
    figure = go.Figure(
        go.Scatter(
            x=[seconds / length for seconds in info.seconds],
            y=info.shares,
            mode="lines+markers",
            line={"shape": "hv", "color": ROLE_COLORS["best"], "width": 2},
            marker={"size": 5},
            hovertemplate=f"%{{y:.1%}} at %{{x:.3g}} {unit}<extra></extra>",
            showlegend=False,
        )
    )
    lay_out(figure, x=f"time since the search began, {unit}", y="hypervolume", height=360)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure
