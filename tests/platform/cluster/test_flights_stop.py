"""A trial is stopped by somebody other than Tune: its lane ends it, and Tune hears of it as the trial's own end."""

from __future__ import annotations

import pytest

from rankloom.cluster.flight import Past
from rankloom.cluster.flights import Flights
from rankloom_registry import TrialEnded, TrialReported, TrialStarted

KNOWN = {"steps": 1, "eval_loss": 0.5}
NOT_IN_TRAINING = "is not in training, so it cannot be stopped; of this search, these are: "


def in_training(slots: int, *trials: str, past: dict[str, Past] | None = None) -> Flights:
    """Flights whose lane has begun as many of the trials as it has slots."""
    flights = Flights(past)
    for number, trial in enumerate(trials):
        flights.submit(trial, number, {"r": 8})
    for spec in flights.orders("lane-0", slots).trials:
        flights.started(TrialStarted(trial_id=spec.trial_id, search_id="s", number=spec.number, params=spec.params))
    return flights


def reported(flights: Flights, trial: str) -> None:
    flights.report([TrialReported(trial_id=trial, step=1, metrics=KNOWN)])


def ends(flights: Flights) -> list[TrialEnded]:
    return [event for event in flights.events if isinstance(event, TrialEnded)]


def test_one_that_ends_by_itself_first_is_nobodys_doing() -> None:
    flights = in_training(1, "a")
    assert flights.stop(0, "ann", "too slow") == ""
    flights.finish(TrialEnded(trial_id="a", status="completed", metrics=KNOWN, who="root"))
    (end,) = ends(flights)
    assert (end.status, end.who, end.why, end.message) == ("completed", "root", "", "")


def test_only_what_is_in_training_can_be_stopped() -> None:
    past = {"a": Past(attempts=1, results=[KNOWN | {"done": True, "outcome": "completed"}], ended=True)}
    flights = in_training(1, "a", "b", "c", past=past)
    for number in (0, 2, 99):  # ended, not begun, not there
        assert flights.stop(number, "ann") == f"trial {number} {NOT_IN_TRAINING}1"
    flights.finish(TrialEnded(trial_id="b", status="completed", metrics=KNOWN))
    assert flights.stop(1, "ann") == f"trial 1 {NOT_IN_TRAINING}none"
    assert [spec.trial_id for spec in flights.orders("lane-0", 1).trials] == ["c"]
    flights.closed = True
    assert "the search is ending" in flights.stop(2, "ann")


def test_one_whose_lane_dies_on_the_way_is_not_trained_again() -> None:
    flights = in_training(1, "a")
    reported(flights, "a")
    assert flights.stop(0, "ann") == ""
    flights.take_back("lane-0")
    (end,) = ends(flights)
    assert (end.status, end.metrics, end.who) == ("stopped", KNOWN, "ann")
    assert end.message == "stopped by ann; its lane died after it was stopped"
    assert not flights.orders("lane-0", 1).trials


def test_one_that_waits_to_go_on_ends_with_what_was_measured() -> None:
    flights = in_training(1, "a")
    reported(flights, "a")
    flights.take_back("lane-0")  # its lane died
    assert flights.stop(0, "ann") == ""
    (end,) = ends(flights)
    assert (end.status, end.metrics, end.message) == ("stopped", KNOWN, "stopped by ann")
    assert not flights.orders("lane-0", 1).trials


@pytest.mark.parametrize("told", ["while its lane has it", "after its lane let it go"])
def test_one_that_tune_pauses_is_over_when_tune_comes_back_to_it(told: str) -> None:
    flights = in_training(1, "a")
    reported(flights, "a")
    lease = 1
    if told == "while its lane has it":
        flights.stop(0, "ann", "enough")
        flights.release("a", lease, paused=True)
        assert flights.orders("lane-0", 0).verdicts == {"a": "stop"}
        flights.finish(TrialEnded(trial_id="a", status="stopped", metrics=KNOWN))
    else:
        flights.release("a", lease, paused=True)
        assert flights.orders("lane-0", 0).verdicts == {"a": "pause"}
        assert flights.stop(0, "ann", "enough") == ""
    (end,) = ends(flights)
    assert (end.status, end.message) == ("stopped", "stopped by ann: enough")
    # It comes back with its checkpoint, and its results begin anew: the first of them is its end.
    flights.submit("a", 0, {"r": 8}, restored=1)
    assert flights.result(flights.ask("a", 0), 0) == KNOWN | {"done": True, "outcome": "stopped"}
    assert not flights.orders("lane-0", 1).trials
    assert ends(flights) == [end]
