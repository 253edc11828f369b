"""Which trial held which slot of which lane, and when, as told by the log alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rankloom_registry import (
    Event,
    Registry,
    SearchEnded,
    SearchNotFoundError,
    SearchResumed,
    SearchStarted,
    TrialEnded,
    TrialStarted,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def begins(number: int, second: float, *, attempt: int = 1, lane: str = "lane-0", slot: int | None = 0) -> Event:
    return TrialStarted(
        trial_id=f"mine-{number}",
        search_id="mine",
        number=number,
        params={},
        attempt=attempt,
        lane=lane,
        slot=slot,
        at=at(second),
    )


def ends(number: int, second: float, status: str = "completed", *, attempt: int = 1) -> Event:
    return TrialEnded(trial_id=f"mine-{number}", status=status, attempt=attempt, at=at(second))


@pytest.fixture
def mine(searched: Registry) -> Registry:
    """A registry with a search of its own beside another one."""
    searched.record(
        SearchStarted(
            search_id="mine",
            name="mine",
            base_content_root="c" * 64,
            dataset={},
            config={},
            metric="eval_loss",
            mode="min",
            num_samples=8,
            seed=0,
            at=NOON,
        )
    )
    return searched


def spans(registry: Registry) -> list[tuple[object, ...]]:
    """Number, attempt, lane, slot, and seconds and status, of each span."""
    found = []
    for span in registry.trial_spans("mine"):
        assert span.trial_id == f"mine-{span.number}"
        end = None if span.ended_at is None else (span.ended_at - NOON).total_seconds()
        begin = (span.started_at - NOON).total_seconds()
        found.append((span.number, span.attempt, span.lane, span.slot, begin, end, span.status))
    return found


def test_a_slot_goes_from_trial_to_trial(mine: Registry) -> None:
    assert mine.trial_spans("mine") == []
    mine.record(begins(0, 1), begins(1, 1, slot=1), ends(0, 3, "stopped"), begins(2, 3.5), ends(2, 5, "failed"))
    assert spans(mine) == [
        (0, 1, "lane-0", 0, 1, 3, "stopped"),
        (1, 1, "lane-0", 1, 1, None, "running"),
        (2, 1, "lane-0", 0, 3.5, 5, "failed"),
    ]
    assert [(trial.number, trial.slot) for trial in mine.trials("mine")] == [(0, 0), (1, 1), (2, 0)]


def test_a_trial_that_was_paused_held_its_slot_until_another_took_it(mine: Registry) -> None:
    mine.record(begins(0, 1), begins(1, 4), ends(1, 8), begins(0, 9, attempt=2, slot=1), ends(0, 12, attempt=2))
    assert spans(mine) == [
        (0, 1, "lane-0", 0, 1, 4, "interrupted"),
        (1, 1, "lane-0", 0, 4, 8, "completed"),
        (0, 2, "lane-0", 1, 9, 12, "completed"),
    ]
    assert [trial.slot for trial in mine.trials("mine")] == [1, 0]


def test_a_trial_that_was_stopped_while_it_was_paused_did_not_hold_its_slot_meanwhile(mine: Registry) -> None:
    mine.record(begins(0, 1), begins(1, 4), ends(1, 8), ends(0, 9, "stopped"))
    assert spans(mine)[0] == (0, 1, "lane-0", 0, 1, 4, "stopped")


def test_a_trial_whose_lane_died_goes_on_elsewhere(mine: Registry) -> None:
    mine.record(begins(0, 1), begins(0, 6, attempt=2, lane="lane-1"), ends(0, 9, attempt=2))
    assert spans(mine) == [
        (0, 1, "lane-0", 0, 1, 6, "interrupted"),
        (0, 2, "lane-1", 0, 6, 9, "completed"),
    ]


def test_the_end_of_a_run_ends_what_it_cut_short(mine: Registry) -> None:
    stopped = SearchEnded(search_id="mine", status="interrupted", at=at(5))
    resumed = SearchResumed(search_id="mine", at=at(100))
    mine.record(begins(0, 1), stopped, resumed, begins(0, 110, attempt=2))
    assert spans(mine) == [
        (0, 1, "lane-0", 0, 1, 5, "interrupted"),
        (0, 2, "lane-0", 0, 110, None, "running"),
    ]


def test_where_nobody_counts_slots_trials_do_not_end_each_other(mine: Registry) -> None:
    mine.record(begins(0, 1, slot=None), begins(1, 2, slot=None), ends(0, 5), ends(1, 6))
    assert spans(mine) == [
        (0, 1, "lane-0", None, 1, 5, "completed"),
        (1, 1, "lane-0", None, 2, 6, "completed"),
    ]


def test_a_search_that_is_not_there_has_no_spans(mine: Registry) -> None:
    with pytest.raises(SearchNotFoundError):
        mine.trial_spans("theirs")
