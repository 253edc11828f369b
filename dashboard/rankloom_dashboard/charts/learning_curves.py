"""Loss against optimizer step, for the trials of a search or for chosen adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

from rankloom_dashboard.charts.style import ROLE_COLORS, ROLE_NAMES, SERIES, Role, lay_out, plain, role_of
from rankloom_dashboard.leaderboard import best_trial, usable_loss
from rankloom_registry import StepMetrics, TrialRecord

_WIDTHS: dict[Role, float] = {"best": 3, "prior": 2, "completed": 1.5, "running": 1.5}
_DASHES: dict[Role, str] = {"prior": "dash", "failed": "dot"}
_QUIET: tuple[Role, ...] = ("stopped", "interrupted", "failed", "completed", "running", "prior", "best")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line: a loss at the steps where it was measured."""

    label: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    role: Role | None = None


def curve(
    label: str,
    points: Sequence[StepMetrics],
    *,
    loss: Literal["eval_loss", "train_loss"] = "eval_loss",
    role: Role | None = None,
) -> Curve:
    """Takes the steps at which the loss was measured and is a number."""
    pairs = [(point.step, value) for point in points if (value := usable_loss(getattr(point, loss))) is not None]
    return Curve(
        label=label, steps=tuple(step for step, _ in pairs), losses=tuple(value for _, value in pairs), role=role
    )


def learning_curves_info(trials: Sequence[TrialRecord], metrics: Mapping[str, Sequence[StepMetrics]]) -> list[Curve]:
    """Builds one curve a trial, the quiet ones first so that the ones that matter are drawn over them.

    Args:
        trials: The trials of one search.
        metrics: Their step metrics by trial_id.

    Returns:
        Curves that have at least one point.
    """
    best = best_trial(trials)
    curves = [
        curve(
            f"trial {trial.number}",
            metrics.get(trial.trial_id, ()),
            role=role_of(trial.status, is_best=trial is best, is_prior=trial.number == 0),
        )
        for trial in trials
    ]
    drawn = [item for item in curves if item.steps]
    return sorted(drawn, key=lambda item: _QUIET.index(item.role or "completed"))


def draw_learning_curves(curves: Sequence[Curve]) -> go.Figure:
    """Draws the trials of a search; each role appears once in the legend and can be switched there as a whole."""
    figure = go.Figure()
    named: set[Role] = set()
    for item in curves:
        role = item.role or "completed"
        alone = role in ("best", "prior")
        figure.add_trace(
            _trace(
                item,
                name=f"{ROLE_NAMES[role]} · {item.label}" if alone else ROLE_NAMES[role],
                line={
                    "color": ROLE_COLORS[role],
                    "width": _WIDTHS.get(role, 1),
                    "dash": _DASHES.get(role, "solid"),
                },
                opacity=1 if alone else 0.65,
                legendgroup=role,
                showlegend=role not in named,
                legendrank=1000 - _QUIET.index(role),
            )
        )
        named.add(role)
    return lay_out(figure, x="step", y="eval loss")


def draw_compared_curves(curves: Sequence[Curve], *, y: str = "eval loss") -> go.Figure:
    """Draws up to six curves over each other, each with a legend entry, a colour and a dash of its own."""
    figure = go.Figure()
    for item, (color, dash) in zip(curves, SERIES, strict=False):
        figure.add_trace(_trace(item, name=plain(item.label), line={"color": color, "width": 2.5, "dash": dash}))
    figure.update_layout(showlegend=True)
    return lay_out(figure, x="step", y=y)


def _trace(item: Curve, **appearance: object) -> go.Scatter:
    return go.Scatter(
        x=item.steps,
        y=item.losses,
        # A trial that was stopped at its first report has one point, which a line alone would not show.
        mode="lines+markers" if len(item.steps) == 1 else "lines",
        text=[plain(item.label)] * len(item.steps),
        hovertemplate="%{text}<br>step %{x} · loss %{y:.4f}<extra></extra>",
        **appearance,
    )
