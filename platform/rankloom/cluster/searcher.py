"""Ray Tune's `OptunaSearch`, with a study that outlives the driver and is told the truth about every trial."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import GridSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from rankloom.cluster.trainable import INTERRUPTED
from rankloom.errors import ConfigError


class OptunaSearcher(OptunaSearch):
    """Tells stopped trials as PRUNED with their last value and failed ones as FAIL, and takes up where a study ended.

    `OptunaSearch` tells a trial that a scheduler stopped as COMPLETE with its low-budget value, and leaves one with a
    NaN metric running for ever. Tune's own way to resume knows nothing of trials that began after it last saved its
    state, and takes those that Ctrl-C cut short for ended. Here every sample is in the study's journal before its trial
    exists, and a resumed search begins with the trials of the journal, under their numbers.
    """

    # Both are set by the time Tune calls back; OptunaSearch annotates neither.
    _metric: str
    _ot_study: optuna.Study  # type: ignore[assignment]

    def __init__(
        self,
        *,
        space: Any,
        metric: str,
        mode: str,
        points: Sequence[dict[str, Any]],
        sampler: optuna.samplers.BaseSampler,
        journal: Path,
    ) -> None:
        """Open the study of a journal, or begin one.

        Args:
            space: Optuna distributions by name, or a function of an Optuna trial.
            metric: Name of the metric.
            mode: 'min' or 'max'.
            points: Points to try first.
            sampler: Optuna's sampler.
            journal: The study's file.
        """
        storage = JournalStorage(JournalFileBackend(str(journal)))
        super().__init__(space=space, metric=metric, mode=mode, sampler=sampler, storage=storage)
        if not self._ot_study.trials:
            for point in points:
                self._ot_study.enqueue_trial(point)
        self._past: Iterator[FrozenTrial] = iter(
            [trial for trial in self._ot_study.trials if trial.state != TrialState.WAITING]
        )
        self._over = False
        # A sampler that has nothing left, a grid's, says so by `Study.stop`, which works inside `Study.optimize` only.
        setattr(self._ot_study, "stop", self._stop)  # noqa: B010
        self._last: dict[str, dict[str, Any]] = {}

    def suggest(self, trial_id: str) -> Any:
        """Return a trial's `number` and sampled `params`: those of an earlier run first, then new ones."""
        if self._over:
            return Searcher.FINISHED
        past = next(self._past, None)
        if past is None and self.exhausted():  # a grid would propose a point again that is being trained
            return Searcher.FINISHED
        if past is not None:
            trial = self._ot_trials[trial_id] = optuna.Trial(self._ot_study, past._trial_id)
            if past.state.is_finished():
                self._completed_trials.add(trial_id)
            elif isinstance(self._space, dict):
                for name, distribution in self._space.items():  # the driver may have died between two of them
                    trial._suggest(name, distribution)
        params = super().suggest(trial_id)
        return {"number": self._ot_trials[trial_id].number, "params": params}

    def exhausted(self) -> bool:
        """Return whether the sampler has nothing left to propose: it said so, or it is a grid that was drawn whole."""
        sampler = self._ot_study.sampler
        if self._over or not isinstance(sampler, GridSampler):
            return self._over
        drawn = {trial.system_attrs.get("grid_id") for trial in self._ot_study.get_trials(deepcopy=False)}
        return len(drawn - {None}) >= math.prod(len(values) for values in sampler._search_space.values())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Leave what is reported in mid-trial to the scheduler; the study learns the last value, at the end."""
        self._last[trial_id] = result

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended; one that was cut short stays RUNNING, for a resumed search to take up."""
        # A trial that is stopped while it is paused ends without a result.
        result = result or self._last.get(trial_id, {})
        outcome, value = result.get("outcome"), result.get(self._metric)
        if outcome == INTERRUPTED:
            self._over = True
            return
        if trial_id in self._completed_trials or trial_id not in self._ot_trials:
            return
        self._completed_trials.add(trial_id)
        trial = self._ot_trials[trial_id]
        if error or value is None or not math.isfinite(value):
            self._ot_study.tell(trial, state=TrialState.FAIL)
        elif outcome == "completed":
            self._ot_study.tell(trial, value)
        else:
            trial.report(value, result["steps"])
            self._ot_study.tell(trial, state=TrialState.PRUNED)

    def _stop(self) -> None:
        self._over = True

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the journal holds everything."""


def build_sampler(sampler: Any, seed: int, *, drawn: int = 0) -> optuna.samplers.BaseSampler:
    """Build Optuna's sampler from a name ('tpe', 'random') or pass an object on.

    Args:
        sampler: Name or object.
        seed: Seed of the search.
        drawn: Trials that an earlier run drew: the same seed would draw them once more.

    Raises:
        ConfigError: The name is unknown.
    """
    if isinstance(sampler, optuna.samplers.BaseSampler):
        if drawn:
            sampler.reseed_rng()
        return sampler
    if sampler == "tpe":
        # Ten random trials, Optuna's default, are more than many searches have.
        return optuna.samplers.TPESampler(seed=seed + drawn, multivariate=True, constant_liar=True, n_startup_trials=5)
    if sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed + drawn)
    raise ConfigError(f"sampler must be 'tpe', 'random' or an optuna sampler, got {sampler!r}")
