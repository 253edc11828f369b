"""Which parameters told good trials from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from rankloom_dashboard.charts.axes import Axis
from rankloom_dashboard.charts.samples import Sample
from rankloom_dashboard.charts.style import ROLE_COLORS, lay_out
from rankloom_dashboard.leaderboard import Objective

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LEAST = 4  # trials; of fewer, nothing can be told
_BEST = 0.25  # the share of trials that counts as good


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """One parameter, and its share of what told good trials from the rest, 0 to 1."""

    axis: Axis
    share: float


def complete_samples(samples: Sequence[Sample], axes: Sequence[Axis]) -> list[Sample]:
    """Returns the trials that have a value of every parameter; others tell nothing of importance."""
    return [
        sample for sample in samples if all(axis.place(sample.trial.params.get(axis.name)) is not None for axis in axes)
    ]


def importance_info(samples: Sequence[Sample], axes: Sequence[Axis], objective: Objective) -> list[Importance]:
    """Measures how much the values of each parameter among the best quarter differ from those among all.

    This is PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023, https://arxiv.org/abs/2304.10255), as Optuna has it.

    Args:
        samples: The trials.
        axes: The parameters in which they differ.
        objective: What is good.

    Returns:
        Parameters, the most important first; none if there are too few trials, or they tell nothing.
    """
    complete = complete_samples(samples, axes)
    if len(complete) < LEAST or not axes or len({sample.value for sample in complete}) < 2:
        return []
    import optuna  # half a second, which only who opens this chart has to wait
    from optuna.importance import PedAnovaImportanceEvaluator

    # A parameter goes by its index: what it is called, and the names of its choices, are others' words.
    distributions = {str(index): _distribution(axis) for index, axis in enumerate(axes)}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if objective.lower_is_better else "maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                value=sample.value,
                params={str(index): _value(axis, sample) for index, axis in enumerate(axes)},
                distributions=distributions,
            )
            for sample in complete
        ]
    )
    raw = PedAnovaImportanceEvaluator(target_quantile=_BEST).evaluate(study)
    total = sum(raw.values())
    if total <= 0:
        return []
    found = [Importance(axis=axes[int(index)], share=value / total) for index, value in raw.items()]
    return sorted(found, key=lambda item: -item.share)


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if axis.choices:
        return CategoricalDistribution(list(range(len(axis.choices))))
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _value(axis: Axis, sample: Sample) -> float:
    if axis.labels:
        return int(axis.place(sample.trial.params.get(axis.name)) or 0)
    value = sample.trial.params[axis.name]
    return axis.choices.index(value) if axis.choices else float(value)


def draw_importance(info: Sequence[Importance]) -> go.Figure:
    """Draws a bar a parameter, the most important on top."""
    figure = go.Figure(
        go.Bar(
            orientation="h",
            y=list(range(len(info))),
            x=[item.share for item in info],
            text=[f"{item.share:.0%}" for item in info],
            textposition="outside",
            cliponaxis=False,
            marker={"color": ROLE_COLORS["best"]},
            hoverinfo="skip",
        )
    )
    lay_out(figure, x="", y="", height=70 + 34 * len(info))
    figure.update_xaxes(range=[0, max(item.share for item in info) * 1.15], visible=False)
    figure.update_yaxes(
        tickvals=list(range(len(info))),
        ticktext=[item.axis.title for item in info],
        autorange="reversed",
        showgrid=False,
    )
    return figure
