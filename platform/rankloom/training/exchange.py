"""How trials come to a lane and what comes back: the seam between what trains and what launches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["completed", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One trial to train.

    Attributes:
        trial_id: Its id in the registry.
        number: Its number in the search; 0 is the prior configuration.
        params: Resolved configuration: r, lora_alpha, use_rslora, lora_dropout, learning_rate, target_modules, seed,
            and any training setting that the space varies.
        attempt: 1, or more after a lane died under it.
    """

    trial_id: str
    number: int
    params: dict[str, Any]
    attempt: int = 1


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


class Exchange(Protocol):
    """What an engine asks for and tells; a lane's goes to the broker, a script's is a list."""

    def take(self) -> TrialSpec | None:
        """Return the next trial, waiting for one if need be, or None when there will be no more."""

    def progress(self, spec: TrialSpec, step: int, train_loss: float) -> None:
        """Tell how far a trial is; cheap, may be lost."""

    def report(self, spec: TrialSpec, metrics: dict[str, Any]) -> bool:
        """Tell an evaluation in mid-trial (`steps` and StepMetrics' fields); False means stop this trial now."""

    def finish(self, spec: TrialSpec, outcome: Outcome) -> None:
        """Tell how a trial ended."""


class LocalExchange:
    """Trials from a list, outcomes into a dict: for scripts and tests without Ray."""

    def __init__(self, specs: list[TrialSpec], *, stop: dict[str, int] | None = None) -> None:
        """Hold trials to run; `stop` maps a trial_id to the step at whose report it is stopped."""
        self._queue = list(specs)
        self._stop = stop or {}
        self.reports: dict[str, list[dict[str, Any]]] = {spec.trial_id: [] for spec in specs}
        self.outcomes: dict[str, Outcome] = {}

    def take(self) -> TrialSpec | None:
        """Return the next trial of the list."""
        return self._queue.pop(0) if self._queue else None

    def progress(self, spec: TrialSpec, step: int, train_loss: float) -> None:
        """Ignore it: nobody watches a script's list."""

    def report(self, spec: TrialSpec, metrics: dict[str, Any]) -> bool:
        """Keep the report."""
        self.reports[spec.trial_id].append(metrics)
        return bool(metrics["steps"] < self._stop.get(spec.trial_id, metrics["steps"] + 1))

    def finish(self, spec: TrialSpec, outcome: Outcome) -> None:
        """Keep the outcome."""
        self.outcomes[spec.trial_id] = outcome
