"""What a search found: one row a trial, the best adapter, and the gain over the prior configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankloom_registry import Registry, TrialRecord

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("eval_loss", "train_loss", "steps", "train_tokens", "peak_memory_bytes", "wall_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A trial as it ended.

    Attributes:
        trial_id: Its id in the registry.
        number: Its number in the search; 0 is the prior configuration.
        status: 'completed', 'stopped' early, 'failed' or 'interrupted'.
        adapter_id: The adapter it made, if any.
        params: Its configuration.
        metrics: eval_loss and train_loss (nats a token), steps, train_tokens, peak_memory_bytes, wall_s.
        message: Why it failed, if it did.
    """

    trial_id: str
    number: int
    status: str
    adapter_id: str | None
    params: Mapping[str, Any]
    metrics: Mapping[str, Any]
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        search_id: Id of the search.
        name: Its name.
        status: 'completed', 'interrupted' or 'failed'.
        registry: The registry's path.
        run_folder: Its run folder.
        trials: All trials, by number.
    """

    search_id: str
    name: str
    status: str
    registry: Path
    run_folder: Path
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The trial with an adapter and the lowest eval_loss, or None where no trial made one."""
        made = [trial for trial in self.trials if trial.adapter_id and trial.metrics.get("eval_loss") is not None]
        return min(made, key=lambda trial: float(trial.metrics["eval_loss"]), default=None)

    @property
    def prior(self) -> Trial | None:
        """Trial 0, the prior configuration."""
        return next((trial for trial in self.trials if trial.number == 0), None)

    @property
    def gain_over_prior(self) -> float | None:
        """How much lower the best eval_loss is than trial 0's, nats a token; None where either is missing."""
        if self.best is None or self.prior is None or self.prior.metrics.get("eval_loss") is None:
            return None
        return float(self.prior.metrics["eval_loss"]) - float(self.best.metrics["eval_loss"])

    def dataframe(self) -> pd.DataFrame:
        """Return one row a trial: number, status, ids, configuration, metrics."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "number": trial.number,
                    "status": trial.status,
                    "trial_id": trial.trial_id,
                    "adapter_id": trial.adapter_id,
                    **trial.params,
                    **trial.metrics,
                    "message": trial.message,
                }
                for trial in self.trials
            ]
        )


def read_result(registry: Registry, search_id: str, run_folder: Path) -> SearchResult:
    """Return a search's result as the registry knows it."""
    search = registry.search(search_id)
    return SearchResult(
        search_id=search_id,
        name=search.name,
        status=search.status,
        registry=registry.path,
        run_folder=run_folder,
        trials=tuple(_trial(record) for record in registry.trials(search_id)),
    )


def _trial(record: TrialRecord) -> Trial:
    return Trial(
        trial_id=record.trial_id,
        number=record.number,
        status=record.status,
        adapter_id=record.adapter_id,
        params=record.params,
        metrics={name: getattr(record, name) for name in METRICS},
        message=record.message,
    )
