"""What a lane tells of its trials, and what Tune is told of them, as the tests of both sides of the broker need it."""

from __future__ import annotations

from typing import Any

from rankloom.cluster.flight import RUNG
from rankloom.training.exchange import TrialSpec
from rankloom_registry import TrialEnded, TrialReported, TrialStarted


def start(spec: TrialSpec) -> TrialStarted:
    return TrialStarted(
        trial_id=spec.trial_id, search_id="s", number=spec.number, params=spec.params, attempt=spec.attempt
    )


def evaluation(trial: str, step: int, loss: float = 1.0) -> TrialReported:
    return TrialReported(trial_id=trial, step=step, metrics={"steps": step, "eval_loss": loss})


def end(trial: str, status: str = "completed", **metrics: float) -> TrialEnded:
    return TrialEnded(trial_id=trial, status=status, metrics=metrics)


def bare(result: dict[str, Any] | None) -> dict[str, Any]:
    """A result without its rung."""
    return {name: value for name, value in (result or {}).items() if name != RUNG}
