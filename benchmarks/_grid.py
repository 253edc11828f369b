"""An exact grid for a search of ours: its space, and Optuna's sampler of it."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState


class GridSpace:
    """A space that is a function of an Optuna trial."""

    def __init__(self, axes: dict[str, list[Any]]) -> None:
        self._axes = axes

    def __call__(self, trial: Any) -> None:
        for name, values in self._axes.items():
            trial.suggest_categorical(name, values)


class Grid(optuna.samplers.GridSampler):
    """Optuna's grid without its stop: outside of `Study.optimize`, `Study.stop` raises at the grid's last trial."""

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        return
