"""The eval loss that each trial ended with, in the order of the search, against the prior configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import plotly.graph_objects as go

from rankloom_dashboard.charts.style import ROLE_COLORS, ROLE_NAMES, Role, lay_out, role_of
from rankloom_dashboard.leaderboard import best_trial, gain, prior_loss, usable_loss
from rankloom_registry import TrialRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One trial: its number, its eval_loss, and its gain over the prior configuration where there is one."""

    number: int
    loss: float
    gain: float | None
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHistoryInfo:
    """The points by number, the best loss so far at each of them, and the prior configuration's loss."""

    points: tuple[Point, ...]
    best_so_far: tuple[float, ...]
    prior: float | None


def search_history_info(trials: Sequence[TrialRecord]) -> SearchHistoryInfo:
    """Collects what each trial reached.

    Args:
        trials: The trials of one search, in any order.

    Returns:
        Points of the trials that have an eval_loss.
    """
    best, prior = best_trial(trials), prior_loss(trials)
    points = tuple(
        Point(
            number=trial.number,
            loss=loss,
            gain=gain(loss, prior),
            role=role_of(trial.status, is_best=trial is best, is_prior=trial.number == 0),
        )
        for trial in sorted(trials, key=lambda trial: trial.number)
        if (loss := usable_loss(trial.eval_loss)) is not None
    )
    lowest = accumulate((point.loss for point in points), min)
    return SearchHistoryInfo(points=points, best_so_far=tuple(lowest), prior=prior)


def draw_search_history(info: SearchHistoryInfo) -> go.Figure:
    """Draws the points by role, the best so far as a step line, and the prior configuration as a level."""
    figure = go.Figure()
    numbers = [point.number for point in info.points]
    figure.add_trace(
        go.Scatter(
            x=numbers,
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
                x=[point.number for point in mine],
                y=[point.loss for point in mine],
                mode="markers",
                marker={
                    "color": ROLE_COLORS[role],
                    "size": 13 if role == "best" else 9,
                    "symbol": {"best": "star", "prior": "diamond", "stopped": "circle-open"}.get(role, "circle"),
                },
                name=ROLE_NAMES[role],
                text=["" if point.gain is None else f" · gain {point.gain:+.4f}" for point in mine],
                hovertemplate="trial %{x} · eval loss %{y:.4f}%{text}<extra></extra>",
            )
        )
    if info.prior is not None:
        figure.add_hline(y=info.prior, line={"color": ROLE_COLORS["prior"], "width": 1.5, "dash": "dash"})
    figure.update_xaxes(tickformat="d")
    return lay_out(figure, x="trial", y="eval loss")
