"""What a search optimises, its trials in that order, and how far each moved from the prior configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeGuard

from rankloom.config import rungs
from rankloom_dashboard import formats
from rankloom_registry import SearchRecord, StepMetrics, TrialRecord

STATES = {
    "completed": "completed",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "running",
    "interrupted": "interrupted",
}
_LONGEST = 500  # characters of a cell
_LARGEST = 1e300
Column = Literal["eval_loss", "train_loss"]  # the metrics that the registry keeps for every trial and step


class Measured(Protocol):
    """Whatever has the losses: a trial, one of its steps, an adapter."""

    @property
    def eval_loss(self) -> float | None:
        """On held-out data."""

    @property
    def train_loss(self) -> float | None:
        """On the data of the training."""


def usable_loss(value: float | None) -> float | None:
    """Returns the loss, or None where there is none that can be compared."""
    return value if value is not None and math.isfinite(value) else None


def is_number(value: object) -> TypeGuard[int | float]:
    """Returns whether a value is a number that can be drawn; JSON knows some that no float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss that the registry keeps, and its direction.

    Attributes:
        column: Which.
        lower_is_better: The direction.
    """

    column: Column = "eval_loss"
    lower_is_better: bool = True

    @property
    def name(self) -> str:
        """What the reader calls it."""
        return self.column.replace("_", " ")

    def of(self, record: Measured) -> float | None:
        """Returns the value of a record, or None where there is none that can be compared."""
        return usable_loss(record.eval_loss if self.column == "eval_loss" else record.train_loss)

    def cost(self, value: float) -> float:
        """Returns the value turned so that lower is better."""
        return value if self.lower_is_better else -value

    def best(self, values: Iterable[float]) -> float:
        """Returns the best of one value or more."""
        return min(values, key=self.cost)


EVAL_LOSS = Objective()


def objective_of(search: SearchRecord) -> Objective | None:
    """Returns what a search optimises, or None if that is a metric that the registry keeps no column of."""
    match search.metric:
        case "eval_loss" | "train_loss":
            return Objective(column=search.metric, lower_is_better=search.mode != "max")
        case _:
            return None


def rank(trials: Sequence[TrialRecord], objective: Objective = EVAL_LOSS) -> list[TrialRecord]:
    """Orders trials, best first; what failed left nothing to keep, and comes after what has a value."""

    def key(trial: TrialRecord) -> tuple[float, int]:
        value = ranked_value(trial, objective)
        return (math.inf if value is None else objective.cost(value), trial.number)

    return sorted(trials, key=key)


def ranked_value(trial: TrialRecord, objective: Objective = EVAL_LOSS) -> float | None:
    """Returns the value that a trial is ranked by, or None if it has none, or failed."""
    return None if trial.status == "failed" else objective.of(trial)


def best_trial(trials: Sequence[TrialRecord], objective: Objective = EVAL_LOSS) -> TrialRecord | None:
    """Returns the best trial that has a value; of two as good, the earlier."""
    return next((trial for trial in rank(trials, objective) if ranked_value(trial, objective) is not None), None)


def prior_loss(trials: Sequence[TrialRecord], objective: Objective = EVAL_LOSS) -> float | None:
    """Returns the value of trial 0, which ran the prior configuration before the search proposed any."""
    return next((objective.of(trial) for trial in trials if trial.number == 0), None)


def gain(value: float | None, prior: float | None, objective: Objective = EVAL_LOSS) -> float | None:
    """Returns by how much a value is better than the prior configuration's; negative where it is worse."""
    value = usable_loss(value)
    return None if value is None or prior is None else objective.cost(prior) - objective.cost(value)


def rung_steps(
    search: SearchRecord, trials: Sequence[TrialRecord], metrics: Mapping[str, Sequence[StepMetrics]]
) -> tuple[int, ...]:
    """Returns the steps at which a search decided whether a trial went on; none unless it halves successively.

    Where the steps of a trial follow from the length of the data, they are those that trials have shown.
    """
    training = search.config.get("training")
    if search.config.get("scheduler") != "asha" or not isinstance(training, Mapping):
        return ()
    evaluated = (point.step for points in metrics.values() for point in points if point.eval_loss is not None)
    first = _steps(training.get("eval_steps")) or min(evaluated, default=0)
    last = _steps(training.get("max_steps")) or max((trial.steps or 0 for trial in trials), default=0)
    return rungs(first, last) if first else ()


def _steps(written: object) -> int:
    return written if isinstance(written, int) and written > 0 else 0


def rung(trial: TrialRecord, steps: Sequence[int]) -> str | None:
    """Returns how many rungs a trial has passed, such as `1/2`; None where there are none."""
    reached = trial.steps or 0
    passed = sum(reached > step or (reached == step and trial.status != "stopped") for step in steps)
    return f"{passed}/{len(steps)}" if steps else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The parameters of a search's trials: the names of those that differ, and the values of those that do not."""

    varying: tuple[str, ...]
    constant: dict[str, str]


def parameters(trials: Sequence[TrialRecord]) -> Parameters:
    """Tells the parameters in which trials differ from the others; of a single trial nothing can be told yet."""
    names = dict.fromkeys(name for trial in trials for name in trial.params if len(name) <= _LONGEST)
    if len(trials) < 2:
        return Parameters(varying=tuple(names), constant={})
    written = {name: {json.dumps(trial.params.get(name), default=str) for trial in trials} for name in names}
    return Parameters(
        varying=tuple(name for name in names if len(written[name]) > 1),
        constant={name: _cell(trials[0].params.get(name)) for name in names if len(written[name]) == 1},
    )


def leaderboard_rows(
    trials: Sequence[TrialRecord], objective: Objective = EVAL_LOSS, steps: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Builds one row a trial, best first.

    Args:
        trials: The trials of one search.
        objective: What it optimises.
        steps: Its rungs, as `rung_steps` gives them.

    Returns:
        Rows of plain values, with the trial's parameters under their names; `state` is a list of one word, as a column
        of labels wants it.
    """
    prior = prior_loss(trials, objective)
    names = {name for trial in trials for name in trial.params}
    numeric = {name for name in names if all(_fits_a_column(trial.params.get(name)) for trial in trials)}
    return [
        {
            **{name: value if name in numeric else _cell(value) for name, value in trial.params.items()},
            "rank": None if ranked_value(trial, objective) is None else place,
            "trial": trial.number,
            "state": [STATES.get(trial.status, trial.status)],
            "rung": rung(trial, steps),
            "lane": _cell(trial.lane) if trial.lane else None,
            "slot": trial.slot,
            "eval_loss": usable_loss(trial.eval_loss),
            "train_loss": usable_loss(trial.train_loss),
            "gain": gain(objective.of(trial), prior, objective),
            "steps": trial.steps,
            "memory": None if trial.peak_memory_bytes is None else trial.peak_memory_bytes / 2**30,
            "seconds": usable_loss(trial.wall_s),
            "wall": formats.duration(trial.wall_s),
            "adapter": trial.adapter_id,
            "message": formats.shorten(trial.message, _LONGEST) or None,
        }
        for place, trial in enumerate(rank(trials, objective), start=1)
    ]


def _fits_a_column(value: object) -> bool:
    """Returns whether a column of numbers can hold a value: a browser knows whole numbers up to 2^53 only."""
    return value is None or (is_number(value) and (isinstance(value, float) or abs(value) <= 2**53))


def _cell(value: object) -> str:
    return formats.shorten(formats.value(value), _LONGEST)
