"""What each trial ended with and the best so far, against the order of the search, its time, or what it has cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import plotly.graph_objects as go

from rankloom_dashboard.charts.device_time import device_time
from rankloom_dashboard.charts.style import (
    ROLE_COLORS,
    ROLE_NAMES,
    ROLE_SYMBOLS,
    Role,
    Scale,
    lay_out,
    role_of,
    scale,
    time_unit,
    with_unit,
)
from rankloom_dashboard.leaderboard import EVAL_LOSS, Objective, best_trial, gain, prior_loss, ranked_value
from rankloom_registry import TrialRecord, TrialSpan

Against = Literal["trials", "time", "device time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One trial: its number, where it stands, its value, and its gain over the prior configuration if there is one."""

    number: int
    at: float
    loss: float
    gain: float | None
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHistoryInfo:
    """The course of a search.

    Attributes:
        points: The trials that have a value, in the order of the axis.
        best_so_far: The best value up to each of them; None before the first that counts.
        prior: The prior configuration's value.
        against: What the axis is; the places of points on it are numbers of trials, or seconds.
    """

    points: tuple[Point, ...]
    best_so_far: tuple[float | None, ...]
    prior: float | None
    against: Against = "trials"


def search_history_info(
    trials: Sequence[TrialRecord],
    objective: Objective = EVAL_LOSS,
    *,
    against: Against = "trials",
    spans: Sequence[TrialSpan] = (),
    began: datetime | None = None,
    until: datetime | None = None,
) -> SearchHistoryInfo:
    """Collects what each trial reached, and when.

    A trial counts with its last value, when it ended; one that still runs with the value that it has, now. What failed
    is shown, but is never the best.

    Args:
        trials: The trials of one search, in any order.
        objective: What it optimises.
        against: What the axis is: numbers of trials, seconds since the search began, or device-seconds; times need
            `began` and `until`, without which it is numbers.
        spans: The attempts of its trials, for `device time`.
        began: When the search began, for `time`.
        until: When it ended, or now, for trials that have no end.

    Returns:
        Points of the trials that have a finite value.
    """
    if began is None or until is None:
        against = "trials"
    best, prior = best_trial(trials, objective), prior_loss(trials, objective)
    place = _place(against, spans, began, until)
    points = sorted(
        (
            Point(
                number=trial.number,
                at=place(trial),
                loss=value,
                gain=gain(value, prior, objective),
                role=role_of(trial.status, is_best=trial is best, is_prior=trial.number == 0),
            )
            for trial in trials
            if (value := objective.of(trial)) is not None
        ),
        key=lambda point: (point.at, point.number),
    )
    counted = {trial.number for trial in trials if ranked_value(trial, objective) is not None}
    lead: float | None = None
    best_so_far: list[float | None] = []
    for point in points:
        if point.number in counted:
            lead = point.loss if lead is None else objective.best((lead, point.loss))
        best_so_far.append(lead)
    return SearchHistoryInfo(points=tuple(points), best_so_far=tuple(best_so_far), prior=prior, against=against)


def _place(
    against: Against, spans: Sequence[TrialSpan], began: datetime | None, until: datetime | None
) -> Callable[[TrialRecord], float]:
    if against == "trials" or began is None or until is None:
        return lambda trial: trial.number
    if against == "time":
        return lambda trial: ((trial.ended_at or until) - began).total_seconds()
    spent = device_time(spans, until)
    return lambda trial: spent.at(trial.ended_at or until)


def draw_search_history(
    info: SearchHistoryInfo, *, y: str = "eval loss", x: str = "trial", log: Collection[Scale] = ()
) -> go.Figure:
    """Draws the points by role, the best so far as a step line, and the prior configuration as a level.

    Args:
        info: As `search_history_info` gives it.
        y: What the values are, in fixed words.
        x: What the axis is, in fixed words; the unit of a time is added.
        log: The axes that are logarithmic.
    """
    figure = go.Figure()
    length, unit = (1.0, "")
    if info.against != "trials":
        length, unit = time_unit(max((point.at for point in info.points), default=0))
    figure.add_trace(
        go.Scatter(
            x=[point.at / length for point in info.points],
            y=info.best_so_far,
            mode="lines",
            line={"shape": "hv", "color": ROLE_COLORS["best"], "width": 1.5},
            opacity=0.6,
            name="best so far",
            hoverinfo="skip",
        )
    )
    for role in dict.fromkeys(point.role for point in info.points):
        mine = [point for point in info.points if point.role == role]
        figure.add_trace(
            go.Scatter(
                x=[point.at / length for point in mine],
                y=[point.loss for point in mine],
                mode="markers",
                marker={
                    "color": ROLE_COLORS[role],
                    "size": 13 if role == "best" else 9,
                    "symbol": ROLE_SYMBOLS[role],
                },
                name=ROLE_NAMES[role],
                text=[
                    f"trial {point.number} · {y} {point.loss:.4f}"
                    + ("" if point.gain is None else f" · gain {point.gain:+.4f}")
                    for point in mine
                ],
                hovertemplate="%{text}" + (f"<br>at %{{x:.3g}} {unit}" if unit else "") + "<extra></extra>",
            )
        )
    if info.prior is not None:
        figure.add_hline(y=info.prior, line={"color": ROLE_COLORS["prior"], "width": 1.5, "dash": "dash"})
    if info.against == "trials":
        figure.update_xaxes(tickformat="d")
    return scale(lay_out(figure, x=f"{x}, {unit}" if unit else x, y=with_unit(y)), log)
