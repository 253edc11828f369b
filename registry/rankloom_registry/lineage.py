"""From the search that made an adapter to the files that were promoted from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from rankloom_registry.records import (
    Adapter,
    AliasMove,
    BaseRecord,
    EvaluationRecord,
    EventRecord,
    PromotionRecord,
    SearchRecord,
    TrialRecord,
)


class Step(NamedTuple):
    """One step of a lineage: `what` it was, in a word, `id` of the record, and what there is to say of it."""

    at: datetime
    what: str
    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """An adapter with all that came before and after it; lists begin with what happened last.

    `search` and `trial` are None for an adapter that was imported. `alias_moves` are those to and away from it.
    """

    adapter: Adapter
    base: BaseRecord
    search: SearchRecord | None
    trial: TrialRecord | None
    evaluations: Sequence[EvaluationRecord]
    promotions: Sequence[PromotionRecord]
    alias_moves: Sequence[AliasMove]
    events: Sequence[EventRecord]

    def steps(self) -> list[Step]:
        """The way from the base to what was exported, in the order of time from the adapter on."""
        base, adapter = self.base, self.adapter
        before = [Step(base.created_at, "base", base.content_root, base.identity)]
        if self.search:
            text = f"{self.search.name}, {self.search.status}, {self.search.trials} trials"
            before.append(Step(self.search.created_at, "search", self.search.search_id, text))
        if self.trial:
            text = f"number {self.trial.number}, {self.trial.status}"
            before.append(Step(self.trial.created_at, "trial", self.trial.trial_id, text))
        origin = "trained" if self.trial else "imported"
        before.append(Step(adapter.created_at, "adapter", adapter.adapter_id, f"{origin}, {adapter.status}"))
        after = [Step(one.created_at, "evaluation", one.evaluation_id, _metrics(one)) for one in self.evaluations]
        for one in self.promotions:
            text = f"{one.status}, {one.recipe}" + (f": {one.reason}" if one.reason else "")
            after.append(Step(one.created_at, "promotion", one.promotion_id, text))
            if one.status != "refused":
                after.append(Step(one.created_at, "export", one.output_sha256, f"{one.format} in {one.output_path}"))
        for move in self.alias_moves:
            arrow = f"{move.previous or 'nothing'} → {move.adapter_id or 'nothing'}"
            after.append(Step(move.at, "alias", f"{move.name}@{move.alias}", arrow))
        return before + sorted(after, key=lambda step: step.at)


def _metrics(evaluation: EvaluationRecord) -> str:
    numbers = {name: value for name, value in evaluation.metrics.items() if isinstance(value, float)}
    return ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()) or "no metric"
