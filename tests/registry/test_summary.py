from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from rankloom_registry import (
    AdapterAdded,
    AdapterDiscarded,
    AliasMoved,
    BaseFingerprint,
    BaseSeen,
    BestAdapter,
    Counts,
    Event,
    Promoted,
    QueryError,
    Registry,
    SearchEnded,
    SearchStarted,
    TrialEnded,
    TrialStarted,
)

START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
LOSSES = {"low": [2.0, 1.0, math.nan, 3.0], "high": [2.0, 1.0, 3.0, math.inf], "other": [0.5, 0.25, 1.0, 2.0]}


def search(number: int, search_id: str, base: BaseFingerprint) -> list[Event]:
    at = START + timedelta(hours=number)
    metric = "train_loss" if search_id == "other" else "eval_loss"
    events: list[Event] = [
        SearchStarted(
            search_id=search_id,
            name=f"name-{search_id}",
            base_content_root=base.content_root,
            dataset={},
            config={},
            metric=metric,
            mode="max" if search_id == "high" else "min",
            num_samples=4,
            seed=0,
            at=at,
        )
    ]
    for trial, loss in enumerate(LOSSES[search_id]):
        trial_id, moment = f"{search_id}-{trial}", at + timedelta(minutes=trial)
        metrics = {metric: loss, "eval_loss" if metric == "train_loss" else "train_loss": 9.0 - loss}
        status = "failed" if trial == 3 else "completed"
        message = f"trial {trial_id} broke" if trial == 3 else ""
        params = {"r": 8}
        events += [
            TrialStarted(trial_id=trial_id, search_id=search_id, number=trial, params=params, at=moment),
            TrialEnded(trial_id=trial_id, status=status, metrics=metrics, message=message, at=moment),
            AdapterAdded(
                adapter_id=f"{trial}-{search_id}",
                name=f"{search_id}-adapter-{trial}",
                trial_id=trial_id,
                base_content_root=base.content_root,
                params=params,
                metrics=metrics,
                artifact_sha256="a" * 64,
                at=moment,
            ),
        ]
    return events


@pytest.fixture
def full(registry: Registry, base: BaseFingerprint) -> Registry:
    registry.record(
        BaseSeen(base=base, at=START),
        *(event for number, name in enumerate(LOSSES) for event in search(number, name, base)),
        SearchEnded(search_id="low", status="completed"),
        SearchEnded(search_id="other", status="failed", message="no"),
        AdapterDiscarded(adapter_id="1-other", reason="test"),
        AliasMoved(name="low-adapter-1", alias="prod", adapter_id="1-low"),
        AliasMoved(name="low-adapter-0", alias="prod", adapter_id="0-low"),
        AliasMoved(name="low-adapter-0", alias="prod", adapter_id=None),
        *(
            Promoted(
                promotion_id=f"p-{status}",
                adapter_id="1-low",
                status=status,
                recipe="full-precision",
                format="safetensors",
                output_path="out",
                output_sha256="",
                checks={},
                reason="because",
            )
            for status in ("done", "refused")
        ),
    )
    return registry


def test_a_summary_says_what_the_lists_in_full_say(full: Registry) -> None:
    found = full.summary()
    assert found.counts == Counts(
        bases=1,
        searches=3,
        trials=12,
        failed_trials=3,
        adapters=12,
        available=11,
        promotions=1,
        refused_promotions=1,
    )
    assert found.searches == full.searches()
    assert [search.search_id for search in found.searches] == ["other", "high", "low"]
    assert found.running == [search for search in full.searches() if search.status == "running"]
    assert [search.search_id for search in found.running] == ["high"]
    assert found.bases == full.bases()
    assert found.promotions == full.promotions()
    assert [(alias.name, alias.alias, alias.adapter_id, alias.eval_loss) for alias in found.in_use] == [
        ("low-adapter-1", "prod", "1-low", 1.0)
    ]
    assert [(trial.search_name, trial.number, trial.message) for trial in found.failed] == [
        (f"name-{name}", 3, f"trial {name}-3 broke") for name in ("other", "high", "low")
    ]


def test_the_best_of_a_search_is_by_its_metric_and_has_files_and_a_number(full: Registry) -> None:
    def best(search_id: str, number: int, value: float) -> BestAdapter:
        name, adapter_id = f"{search_id}-adapter-{number}", f"{number}-{search_id}"
        return BestAdapter(search_id=search_id, adapter_id=adapter_id, name=name, value=value)

    # The best of `other`, by its training loss, was discarded; those of `low` and `high` that are no numbers are none.
    assert full.summary().best == {
        "low": best("low", 1, 1.0),
        "high": best("high", 2, 3.0),
        "other": best("other", 0, 0.5),
    }


def test_each_list_is_cut(full: Registry) -> None:
    found = full.summary(limit=1)
    assert [len(part) for part in (found.searches, found.bases, found.promotions, found.failed)] == [1, 1, 1, 1]
    assert list(found.best) == ["other"]
    assert found.counts.searches == 3
    with full.held() as held:
        assert held.summary(limit=1) == found
    with pytest.raises(QueryError):
        full.summary(limit=-1)


def test_an_empty_registry_has_a_summary(registry: Registry) -> None:
    found = registry.summary()
    assert found.counts.adapters == found.counts.searches == 0
    assert not (found.searches or found.running or found.best or found.failed or found.in_use)
