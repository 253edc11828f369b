"""What earlier runs of a search left in the registry, for the run that takes it up."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rankloom.result import METRICS
from rankloom_registry import Event, Registry, TrialEnded, TrialRecord, TrialStarted

if TYPE_CHECKING:
    from rankloom.cluster.flight import Past

ENDED = ("completed", "stopped", "failed")


def read_story(registry: Registry, search_id: str) -> list[Event]:
    """Return the trials that earlier runs of a search saw to their end, as events."""
    story: list[Event] = []
    for trial in registry.trials(search_id):
        if trial.status in ENDED:
            story += [
                TrialStarted(trial_id=trial.trial_id, search_id=search_id, number=trial.number, params=trial.params),
                _end_of(trial),
            ]
    return story


def read_past(registry: Registry, search_id: str) -> dict[str, Past]:
    """Return what earlier runs of a search saw of its trials."""
    from rankloom.cluster.flight import Past, final_result

    evaluations: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in registry.sql(
        "select m.trial_id, m.step as steps, m.eval_loss from step_metrics m join trials t using (trial_id) "
        f"where t.search_id = '{search_id}' and (m.step < t.steps or t.status not in {ENDED}) order by m.step"
    ):
        evaluations[row.pop("trial_id")].append(row)
    return {
        trial.trial_id: Past(
            attempts=trial.attempts,
            results=[
                *evaluations[trial.trial_id],
                *([final_result(_end_of(trial))] if trial.status in ENDED else []),
            ],
            ended=trial.status in ENDED,
        )
        for trial in registry.trials(search_id)
    }


def last_heard(registry: Registry, search_id: str) -> datetime:
    """Return when anything was last recorded of a search."""
    ((heard,),) = (
        row.values()
        for row in registry.sql(
            f"""select max("at") as heard from events where subject = '{search_id}'
            or subject in (select trial_id from trials where search_id = '{search_id}')"""
        )
    )
    assert isinstance(heard, datetime)
    return heard


def _end_of(trial: TrialRecord) -> TrialEnded:
    metrics = {name: getattr(trial, name) for name in METRICS}
    return TrialEnded(
        trial_id=trial.trial_id,
        status=trial.status,
        metrics={name: value for name, value in metrics.items() if value is not None},
        message=trial.message,
        attempt=trial.attempts,
    )
