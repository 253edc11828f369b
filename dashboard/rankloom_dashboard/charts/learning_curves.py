"""Loss against optimizer step, for the trials of a search or for chosen adapters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from rankloom_dashboard.charts.style import (
    ROLE_COLORS,
    ROLE_DASHES,
    ROLE_NAMES,
    SERIES,
    Role,
    Scale,
    faded,
    lay_out,
    plain,
    role_of,
    scale,
    with_unit,
)
from rankloom_dashboard.leaderboard import (
    EVAL_LOSS,
    Column,
    Objective,
    best_trial,
    rank,
    ranked_value,
    usable_loss,
)
from rankloom_registry import StepMetrics, TrialRecord

_WIDTHS: dict[Role, float] = {"best": 3, "prior": 2, "completed": 1.5, "running": 1.5}
_QUIET: tuple[Role, ...] = ("stopped", "interrupted", "failed", "completed", "running", "prior", "best")
_DOT = 6  # pixels
_MANY = 40  # curves of which one hides the others


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
    loss: Column = "eval_loss",
    role: Role | None = None,
) -> Curve:
    """Takes the steps at which the loss was measured and is a number."""
    pairs = [(point.step, value) for point in points if (value := usable_loss(getattr(point, loss))) is not None]
    return Curve(
        label=label, steps=tuple(step for step, _ in pairs), losses=tuple(value for _, value in pairs), role=role
    )


def learning_curves_info(
    trials: Sequence[TrialRecord],
    metrics: Mapping[str, Sequence[StepMetrics]],
    *,
    objective: Objective = EVAL_LOSS,
    top: int | None = None,
    stopped: bool = True,
) -> list[Curve]:
    """Builds one curve a trial, the quiet ones first so that the ones that matter are drawn over them.

    Args:
        trials: The trials of one search.
        metrics: Their step metrics by trial_id.
        objective: What the search optimises, and the curves show.
        top: Take only so many of the best, and the prior configuration to hold them against; None for all.
        stopped: Whether trials that were stopped early are among them; the best and the prior are in any case.

    Returns:
        Curves that have at least one point.
    """
    best = best_trial(trials, objective)
    chosen = [trial for trial in trials if stopped or trial.status != "stopped" or trial is best or trial.number == 0]
    if top is not None:
        ranked = [trial for trial in rank(chosen, objective) if ranked_value(trial, objective) is not None]
        leading = {trial.trial_id for trial in ranked[:top]}
        chosen = [trial for trial in chosen if trial.trial_id in leading or trial.number == 0]
    curves = [
        curve(
            f"trial {trial.number}",
            metrics.get(trial.trial_id, ()),
            loss=objective.column,
            role=role_of(trial.status, is_best=trial is best, is_prior=trial.number == 0),
        )
        for trial in chosen
    ]
    drawn = [item for item in curves if item.steps]
    return sorted(drawn, key=lambda item: _QUIET.index(item.role or "completed"))


def draw_learning_curves(curves: Sequence[Curve], *, y: str = "eval loss", log: Collection[Scale] = ()) -> go.Figure:
    """Draws the trials of a search; each role is one entry of the legend, and can be switched there as a whole.

    Args:
        curves: As `learning_curves_info` gives them.
        y: What they show, in fixed words.
        log: The axes that are logarithmic.
    """
    figure = go.Figure()
    faint = 0.65 if len(curves) <= _MANY else 0.4
    for role in _QUIET:
        mine = [item for item in curves if (item.role or "completed") == role]
        if not mine:
            continue
        alone = role in ("best", "prior")
        figure.add_trace(
            _trace(
                mine,
                name=f"{ROLE_NAMES[role]} · {mine[0].label}" if alone else ROLE_NAMES[role],
                line={
                    "color": faded(ROLE_COLORS[role], 1 if alone else faint),
                    "width": _WIDTHS.get(role, 1),
                    "dash": ROLE_DASHES[role],
                },
                showlegend=True,
                legendrank=1000 - _QUIET.index(role),
            )
        )
    if "x" in log:
        figure.update_xaxes(tick0=0, dtick=math.log10(2))  # steps grow by doubling; Plotly would write 2 for 200
    return scale(lay_out(figure, x="step", y=with_unit(y)), log)


def draw_compared_curves(curves: Sequence[Curve], *, y: str = "eval loss") -> go.Figure:
    """Draws up to six curves over each other, each with a legend entry, a colour and a dash of its own."""
    figure = go.Figure()
    for item, (color, dash) in zip(curves, SERIES, strict=False):
        figure.add_trace(_trace([item], name=plain(item.label), line={"color": color, "width": 2.5, "dash": dash}))
    figure.update_layout(showlegend=True)
    return lay_out(figure, x="step", y=with_unit(y))


def _trace(curves: Sequence[Curve], **appearance: object) -> go.Scatter:
    """Makes curves into one trace with gaps between them: a trace a curve takes Plotly half a second for 200."""
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[str] = []
    sizes: list[int] = []
    for item in curves:
        x += [*item.steps, None]
        y += [*item.losses, None]
        text += [plain(item.label)] * (len(item.steps) + 1)
        # A trial that was stopped at its first report has one point, which a line alone would not show.
        sizes += [_DOT if len(item.steps) == 1 else 0] * (len(item.steps) + 1)
    return go.Scatter(
        x=x,
        y=y,
        mode="lines+markers" if any(sizes) else "lines",
        marker={"size": sizes},
        text=text,
        hovertemplate="%{text}<br>step %{x} · loss %{y:.4f}<extra></extra>",
        **appearance,
    )
