"""Ray Tune's `OptunaSearch`, with the study told the truth about trials that were stopped or failed."""

from __future__ import annotations

import math
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch


class OptunaSearcher(OptunaSearch):
    """Tells stopped trials as PRUNED with their last value, and failed ones as FAIL.

    `OptunaSearch` tells a trial that a scheduler stopped as COMPLETE with its low-budget value, and leaves one with a
    NaN metric running for ever.
    """

    # Both are set by the time Tune calls back; OptunaSearch annotates neither.
    _metric: str
    _ot_study: optuna.Study  # type: ignore[assignment]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report an intermediate value under its training step."""
        value = result.get(self._metric)
        if trial_id in self._ot_trials and value is not None and math.isfinite(value):
            self._ot_trials[trial_id].report(value, result["steps"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended."""
        if trial_id in self._completed_trials or trial_id not in self._ot_trials:
            return
        self._completed_trials.add(trial_id)
        trial = self._ot_trials[trial_id]
        result = result or {}
        value = result.get(self._metric)
        if error or value is None or not math.isfinite(value):
            self._ot_study.tell(trial, state=TrialState.FAIL)
        elif result.get("outcome") == "completed":
            self._ot_study.tell(trial, value)
        else:
            trial.report(value, result["steps"])
            self._ot_study.tell(trial, state=TrialState.PRUNED)


def build_sampler(sampler: Any, seed: int) -> optuna.samplers.BaseSampler:
    """Build Optuna's sampler from a name ('tpe', 'random') or pass an object on.

    Raises:
        ConfigError: The name is unknown.
    """
    from rankloom.errors import ConfigError

    if isinstance(sampler, optuna.samplers.BaseSampler):
        return sampler
    if sampler == "tpe":
        # Ten random trials, Optuna's default, are more than many searches have.
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=5)
    if sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise ConfigError(f"sampler must be 'tpe', 'random' or an optuna sampler, got {sampler!r}")
