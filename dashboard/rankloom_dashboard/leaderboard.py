"""Ranks the trials of a search, and says how far each moved from the prior configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rankloom_dashboard import formats
from rankloom_registry import Adapter, TrialRecord

STATES = {
    "completed": "completed",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "running",
    "interrupted": "interrupted",
}


def usable_loss(value: float | None) -> float | None:
    """Returns the loss, or None where there is none that can be compared."""
    return value if value is not None and math.isfinite(value) else None


def rank(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Orders trials by eval_loss, those without one last."""

    def key(trial: TrialRecord) -> tuple[float, int]:
        loss = usable_loss(trial.eval_loss)
        return (math.inf if loss is None else loss, trial.number)

    return sorted(trials, key=key)


def best_trial(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Returns the trial with the lowest eval_loss."""
    return next((trial for trial in rank(trials) if usable_loss(trial.eval_loss) is not None), None)


def prior_loss(trials: Sequence[TrialRecord]) -> float | None:
    """Returns the eval_loss of trial 0, which ran the prior configuration before the search proposed any."""
    return next((usable_loss(trial.eval_loss) for trial in trials if trial.number == 0), None)


def gain(loss: float | None, prior: float | None) -> float | None:
    """Returns by how much the loss lies under the prior configuration's; negative where it is worse."""
    loss = usable_loss(loss)
    return None if loss is None or prior is None else prior - loss


def leaderboard_rows(trials: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Builds one row a trial, best first.

    Args:
        trials: The trials of one search.

    Returns:
        Rows of plain values; `state` is a list of one word, as a column of labels wants it.
    """
    prior = prior_loss(trials)
    return [
        {
            "rank": place if usable_loss(trial.eval_loss) is not None else None,
            "trial": trial.number,
            "state": [STATES.get(trial.status, trial.status)],
            "eval_loss": usable_loss(trial.eval_loss),
            "gain": gain(trial.eval_loss, prior),
            "r": trial.params.get("r"),
            "lora_alpha": trial.params.get("lora_alpha"),
            "learning_rate": trial.params.get("learning_rate"),
            "target_modules": formats.target_modules(trial.params),
            "lora_dropout": trial.params.get("lora_dropout"),
            "steps": trial.steps,
            "wall": formats.duration(trial.wall_s),
            "adapter": trial.adapter_id,
            "message": trial.message or None,
        }
        for place, trial in enumerate(rank(trials), start=1)
    ]


def adapter_rows(adapters: Sequence[Adapter]) -> list[dict[str, Any]]:
    """Builds one row an adapter, in the order given."""
    return [
        {
            "adapter": adapter.adapter_id,
            "name": adapter.name,
            "aliases": list(adapter.aliases),
            "files": [adapter.status],
            "eval_loss": usable_loss(adapter.eval_loss),
            "r": adapter.r,
            "lora_alpha": adapter.lora_alpha,
            "learning_rate": adapter.learning_rate,
            "target_modules": adapter.target_modules,
            "search": adapter.search_name,
            "base": formats.base(adapter.base_identity),
            "created": formats.when(adapter.created_at),
        }
        for adapter in adapters
    ]
