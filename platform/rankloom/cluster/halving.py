"""Asynchronous successive halving for trials that are trained side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from rankloom.cluster.flight import RUNG


class SuccessiveHalving(FIFOScheduler):
    """At each rung, lets a trial go on if it is among the best 1/η of those that have come as far.

    This is ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, algorithm 2), in the
    form that stops trials. Ray Tune's own form hears one result after the other: of trials that share a base and so
    reach a rung in the same step, the first heard always goes on, and each later one is held against those before it.
    Here a result brings what is known of its rung, and trials of one step are held against each other.
    """

    def __init__(self, rungs: Sequence[int], *, reduction_factor: int) -> None:
        """Decide after certain steps.

        Args:
            rungs: Optimizer steps after which it is decided, without the last step of all.
            reduction_factor: η: one trial in so many goes on.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._rungs = frozenset(rungs)
        self._reduction_factor = reduction_factor
        self._lower_is_better = True

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take the search's metric and mode."""
        self._lower_is_better = mode == "min"
        return bool(super().set_search_properties(metric, mode, **spec))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide about a trial that was evaluated."""
        value = result.get(self.metric)
        if result.get("steps") not in self._rungs or value is None:
            return TrialScheduler.CONTINUE
        known = result[RUNG]
        better = sum(other < value if self._lower_is_better else other > value for other in known)
        goes_on = better < max(1, len(known) // self._reduction_factor)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
