"""What all parts of the page know of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

import streamlit as st

from rankloom_dashboard import data
from rankloom_dashboard.charts.samples import Footing, Sample, samples
from rankloom_dashboard.leaderboard import EVAL_LOSS, Objective, objective_of, usable_loss
from rankloom_registry import SearchRecord, StepMetrics, TrialRecord

_FOOTINGS: dict[str, Footing] = {
    "Completed": "completed",
    "Stopped too": "stopped too",
    "At the first evaluation": "first evaluation",
}
_EXPLAINED: dict[Footing, str] = {
    "completed": "Only trials that ran to their end count.",
    "stopped too": (
        "Trials that were stopped early count with the value that they had reached, after less training than others: "
        "what was stopped looks worse than it may be."
    ),
    "first evaluation": (
        "Every trial counts with its value at the first evaluation, so that all have had the same training, but little."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One search at one moment.

    Attributes:
        search: The search, as it was recorded.
        status: Its status; `interrupted` if it is recorded as running but its process is gone.
        trials: Its trials by number.
        metrics: Their step metrics by trial_id.
        objective: What the page ranks by: what the search optimises, or eval loss where that is not recorded.
        substituted: Whether the search optimises a metric that is not recorded.
        until: When it ended; now while it runs; when it was last heard of if its process is gone.
    """

    search: SearchRecord
    status: str
    trials: Sequence[TrialRecord]
    metrics: Mapping[str, Sequence[StepMetrics]]
    objective: Objective
    substituted: bool
    until: datetime

    @classmethod
    def of(cls, details: data.SearchDetails, *, status: str, now: datetime) -> Self:
        """Makes the view of a search as it is now."""
        search, known = details.search, objective_of(details.search)
        ended = now if status == "running" else search.ended_at or _last_heard(search, details.trials)
        return cls(
            search=search,
            status=status,
            trials=details.trials,
            metrics=details.metrics,
            objective=known or EVAL_LOSS,
            substituted=known is None,
            until=ended,
        )


def _last_heard(search: SearchRecord, trials: Sequence[TrialRecord]) -> datetime:
    heard = (trial.ended_at or trial.created_at + timedelta(seconds=usable_loss(trial.wall_s) or 0) for trial in trials)
    return max(heard, default=search.created_at)


def choose_samples(view: View) -> list[Sample]:
    """Shows which trials are compared, and returns them; every chart of parameters asks the same."""
    chosen = st.segmented_control(
        "Trials that count", list(_FOOTINGS), default="Completed", required=True, key="count", bind="query-params"
    )
    footing = _FOOTINGS[chosen or "Completed"]
    found = samples(view.trials, view.metrics, view.objective, footing)
    st.caption(f"{_EXPLAINED[footing]} {len(found)} of {len(view.trials)} count.")
    return found
