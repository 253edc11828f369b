"""The trials of a search as points: each with the value by which it is set beside the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rankloom_dashboard.leaderboard import Objective
from rankloom_registry import StepMetrics, TrialRecord

Footing = Literal["completed", "stopped too", "first evaluation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A trial, and the value that stands for it."""

    trial: TrialRecord
    value: float


def samples(
    trials: Sequence[TrialRecord],
    metrics: Mapping[str, Sequence[StepMetrics]],
    objective: Objective,
    footing: Footing = "completed",
) -> list[Sample]:
    """Gives each trial the value by which it is set beside the others.

    A trial that was stopped early ended with the value of a shorter training, which is hardly ever as good as what
    the same parameters would have reached.

    Args:
        trials: The trials of one search.
        metrics: Their step metrics by trial_id.
        objective: What the search optimises.
        footing: `completed` takes those that ran to their end; `stopped too` also those that were stopped, with the
            value that they had reached; `first evaluation` takes every trial that came as far as the first evaluation
            of the search, with its value there, so that all have had the same training.

    Returns:
        Samples by number of the trial; a trial without a finite value has none.
    """
    if footing == "first evaluation":
        reached = [
            (trial, {point.step: value for point in points if (value := objective.of(point)) is not None})
            for trial in trials
            if (points := metrics.get(trial.trial_id))
        ]
        first = min((step for _, values in reached for step in values), default=0)
        found = [Sample(trial=trial, value=values[first]) for trial, values in reached if first in values]
    else:
        counted = {"completed"} if footing == "completed" else {"completed", "stopped"}
        found = [
            Sample(trial=trial, value=value)
            for trial in trials
            if trial.status in counted and (value := objective.of(trial)) is not None
        ]
    return sorted(found, key=lambda sample: sample.trial.number)
