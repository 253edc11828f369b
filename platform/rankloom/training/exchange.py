"""How trials come to a lane and what comes back: the seam between what trains and what launches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["completed", "stopped", "failed"]
Verdict = Literal["go_on", "stop", "pause"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One trial to train.

    Attributes:
        trial_id: Its id in the registry.
        number: Its number in the search; 0 is the prior configuration.
        params: Resolved configuration: r, lora_alpha, use_rslora, lora_dropout, learning_rate, target_modules, seed,
            and any training setting that the space varies.
        attempt: 1, or more after a lane died under it or it was paused.
        decided: The last step whose evaluation was answered with 'go_on': a checkpoint of it need not ask again.
        slot: The engine's slot that it takes; None where the engine has none.
    """

    trial_id: str
    number: int
    params: dict[str, Any]
    attempt: int = 1
    decided: int = 0
    slot: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a trial ended.

    Attributes:
        status: 'completed' all steps, 'stopped' early on request, or 'failed'.
        metrics: The last measured eval_loss, train_loss (nats a token), steps, train_tokens, peak_memory_bytes, wall_s.
        message: Why it failed.
        adapter: Folder of the saved PEFT adapter, where there is one.
    """

    status: Status
    metrics: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    adapter: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What an engine is to do next.

    Attributes:
        trials: Trials to begin.
        verdicts: Decisions by trial_id, each given once: about a report, or 'stop' at any time.
        over: The search is over: trials in hand are left as they are, cut short.
        more: Whether waiting a moment may bring more.
    """

    trials: tuple[TrialSpec, ...] = ()
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    over: bool = False
    more: bool = True


Free = Sequence[int | None]  # indices of an engine's free slots; None is the place of an engine that has no slots
Report = tuple[TrialSpec, dict[str, Any]]  # an evaluation: `steps` and StepMetrics' fields


class Exchange(Protocol):
    """What an engine asks for and tells; a lane's goes to the broker, a script's is a list."""

    def orders(self, free: Free, wait_s: float | None) -> Orders:
        """Ask for new trials and for decisions, waiting until there is something, at most `wait_s`.

        Args:
            free: The slots in which the engine could begin a trial each; a trial that comes is told the one it takes.
            wait_s: Seconds to wait; 0 returns what there is, None waits as long as it takes.
        """

    def progress(self, spec: TrialSpec, step: int, train_loss: float) -> None:
        """Tell how far a trial is; cheap, may be lost."""

    def report(self, reports: Sequence[Report]) -> None:
        """Tell evaluations in mid-trial, those of one moment together; verdicts come with later orders."""

    def finish(self, spec: TrialSpec, outcome: Outcome) -> None:
        """Tell how a trial ended."""


def seated(trials: Iterable[TrialSpec], free: Free) -> tuple[TrialSpec, ...]:
    """Return the trials that free slots are there for, each with its slot."""
    return tuple(replace(spec, slot=slot) for spec, slot in zip(trials, free, strict=False))


class LocalExchange:
    """Trials from a list, outcomes into a dict: for scripts and tests without Ray."""

    def __init__(self, specs: list[TrialSpec], *, stop: dict[str, int] | None = None) -> None:
        """Hold trials to run; `stop` maps a trial_id to the step at whose report it is stopped."""
        self._queue = list(specs)
        self._stop = stop or {}
        self._verdicts: dict[str, Verdict] = {}
        self.reports: dict[str, list[dict[str, Any]]] = {spec.trial_id: [] for spec in specs}
        self.outcomes: dict[str, Outcome] = {}

    def orders(self, free: Free, wait_s: float | None) -> Orders:
        """Return the next trials of the list, and what was decided."""
        trials = seated(self._queue, free)
        del self._queue[: len(trials)]
        verdicts, self._verdicts = self._verdicts, {}
        over = len(self.outcomes) == len(self.reports)
        return Orders(trials=trials, verdicts=verdicts, over=over, more=False)

    def progress(self, spec: TrialSpec, step: int, train_loss: float) -> None:
        """Ignore it: nobody watches a script's list."""

    def report(self, reports: Sequence[Report]) -> None:
        """Keep the reports."""
        for spec, metrics in reports:
            self.reports[spec.trial_id].append(metrics)
            goes_on = metrics["steps"] < self._stop.get(spec.trial_id, metrics["steps"] + 1)
            self._verdicts[spec.trial_id] = "go_on" if goes_on else "stop"

    def finish(self, spec: TrialSpec, outcome: Outcome) -> None:
        """Keep the outcome."""
        self.outcomes[spec.trial_id] = outcome
