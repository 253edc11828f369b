"""From a search's events to the registry: every trial is recorded, and the best adapters keep their files."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from rankloom_registry import (
    AdapterAdded,
    AdapterDiscarded,
    ArtifactError,
    Event,
    Registry,
    TrialEnded,
    TrialStarted,
    read_weights,
)


class Recorder:
    """Folds events into the registry, and keeps the files of the best `keep_top` adapters only."""

    def __init__(
        self, registry: Registry, *, search_id: str, name: str, base_content_root: str, adapters: Path, keep_top: int
    ) -> None:
        """Continue from what the registry knows of the search.

        Args:
            registry: Where to record.
            search_id: Id of the search.
            name: Name of the search, and of its adapters.
            base_content_root: Fingerprint of the base.
            adapters: Folder where lanes leave each trial's adapter as `<trial_id>/`.
            keep_top: Adapters that keep their files.
        """
        self._registry = registry
        self._name = name
        self._base_content_root = base_content_root
        self._folder = adapters
        self._keep_top = keep_top
        self._params = {trial.trial_id: trial.params for trial in registry.trials(search_id)}
        self._best: list[tuple[float, str, str]] = sorted(
            (float(adapter.eval_loss or 0.0), adapter.adapter_id, adapter.artifact_sha256)
            for adapter in registry.adapters(where=f"search_id = '{search_id}' and status = 'available'")
        )

    def record(self, events: Sequence[Event]) -> None:
        """Record events in one transaction, with the adapters that ended trials left behind."""
        dropped: list[str] = []
        batch: list[Event] = []
        for event in events:
            batch.append(event)
            if isinstance(event, TrialStarted):
                self._params[event.trial_id] = dict(event.params)
            elif isinstance(event, TrialEnded):
                batch += self._adapter_events(event, dropped)
        self._registry.record(*batch)
        # Files go only after the registry says so: a crash in between leaves a file too many, never one too few.
        for sha256 in dropped:
            if not self._registry.adapters(where=f"artifact_sha256 = '{sha256}' and status = 'available'", limit=1):
                self._registry.artifacts.remove(sha256)
        for event in events:
            if isinstance(event, TrialEnded):
                shutil.rmtree(self._folder / event.trial_id, ignore_errors=True)

    def _adapter_events(self, end: TrialEnded, dropped: list[str]) -> list[Event]:
        folder, loss = self._folder / end.trial_id, end.metrics.get("eval_loss")
        if loss is None or not math.isfinite(loss) or not (folder / "adapter_config.json").is_file():
            return []
        made = adapter_id(end.trial_id)
        if any(made == kept for _, kept, _ in self._best):
            return []
        metrics = dict(end.metrics)
        kept, sha256, refusal = len(self._best) < self._keep_top or loss < self._best[-1][0], "", ""
        if kept:
            # What the store refuses (a rank beyond its bounds, NaN) is this adapter's fate, not the search's.
            try:
                sha256 = self._registry.artifacts.add(folder)
                metrics |= read_weights(folder).summary()
            except ArtifactError as error:
                kept, refusal = False, str(error)
        events: list[Event] = [
            AdapterAdded(
                adapter_id=made,
                name=self._name,
                trial_id=end.trial_id,
                base_content_root=self._base_content_root,
                params=self._params[end.trial_id],
                metrics=metrics,
                artifact_sha256=sha256,
                status="available" if kept else "discarded",
            )
        ]
        if refusal:
            events.append(AdapterDiscarded(adapter_id=made, reason=refusal))
        if kept:
            self._best = sorted([*self._best, (loss, made, sha256)])
            aliased = {alias.adapter_id for alias in self._registry.aliases(self._name)}
            for _, worse, worse_sha256 in self._best[self._keep_top :]:
                if worse in aliased:  # somebody counts on it
                    continue
                events.append(AdapterDiscarded(adapter_id=worse, reason=f"not among the best {self._keep_top}"))
                dropped.append(worse_sha256)
            del self._best[self._keep_top :]
        return events


def adapter_id(trial_id: str) -> str:
    """Return the id of the adapter that a trial made: the same whenever it is recorded."""
    return hashlib.sha256(trial_id.encode()).hexdigest()[:12]
