"""Who gets which trial, and what becomes of it: plain state, with nobody waiting."""

from __future__ import annotations

from typing import Any

import pytest
from trial_events import bare, end, evaluation, start

from rankloom.cluster.flight import RUNG, Past, Progress, final_result
from rankloom.cluster.flights import MAX_ATTEMPTS, Flights
from rankloom.training.exchange import Orders, TrialSpec, Verdict
from rankloom_registry import Event, TrialEnded, TrialStarted

PARAMS = {"r": 8}
ALL = 100  # slots enough for everything that is queued


def submitted(flights: Flights, *trials: str) -> None:
    for number, trial in enumerate(trials):
        flights.submit(trial, number, PARAMS)


def taken(flights: Flights, free: int = ALL) -> list[TrialSpec]:
    """The trials that a lane takes and begins."""
    return begun(flights, flights.orders("lane-0", free))


def begun(flights: Flights, orders: Orders) -> list[TrialSpec]:
    for spec in orders.trials:
        flights.started(start(spec))
    return list(orders.trials)


def verdicts(flights: Flights) -> dict[str, Verdict]:
    return dict(flights.orders("lane-0", 0).verdicts)


def in_training(*trials: str, takes_turns: bool = False) -> Flights:
    """Flights whose lane has begun the trials."""
    flights = Flights(takes_turns=takes_turns)
    submitted(flights, *trials)
    assert len(taken(flights)) == len(trials)
    return flights


def heard(flights: Flights, trial: str, index: int) -> dict[str, Any] | None:
    """What Tune is told that asks for a result; it has then let the trial go on after the one before."""
    return flights.result(flights.ask(trial, index), index)


def evaluated(flights: Flights, trial: str, step: int, *, index: int | None = None, loss: float = 1.0) -> None:
    """The lane reports and Tune hears of it."""
    flights.report([evaluation(trial, step, loss)])
    assert (heard(flights, trial, step - 1 if index is None else index) or {})["steps"] == step


def told(flights: Flights) -> list[Event]:
    """What happened, but for what began."""
    return [event for event in flights.events if not isinstance(event, TrialStarted)]


# Who gets which trial


def test_trials_are_taken_in_the_order_in_which_they_were_submitted() -> None:
    flights = Flights()
    for number, trial in enumerate(["b", "a", "c"]):
        flights.submit(trial, number, {"r": number})
    specs = [*taken(flights, 2), *taken(flights, 2)]
    assert [(spec.trial_id, spec.number, spec.params, spec.attempt, spec.decided) for spec in specs] == [
        ("b", 0, {"r": 0}, 1, 0),
        ("a", 1, {"r": 1}, 1, 0),
        ("c", 2, {"r": 2}, 1, 0),
    ]


def test_a_lane_without_a_free_slot_gets_no_trial_and_one_with_some_gets_no_more() -> None:
    flights = Flights()
    submitted(flights, "a", "b", "c")
    assert [len(taken(flights, free)) for free in (0, 2, 2)] == [0, 2, 1]


# What is decided


def test_each_trial_gets_its_own_verdict() -> None:
    flights = in_training("a", "b", "c", "d")
    for trial in ("a", "b", "c", "d"):
        evaluated(flights, trial, 1)
    flights.release("b")
    flights.release("c", paused=True)
    flights.ask("a", 1)
    assert verdicts(flights) == {"a": "go_on", "b": "stop", "c": "pause"}


@pytest.mark.parametrize("verdict", ["go_on", "stop", "pause"])
def test_a_verdict_is_given_once(verdict: Verdict) -> None:
    flights = in_training("a")
    evaluated(flights, "a", 1)
    if verdict == "go_on":
        flights.ask("a", 1)
    else:
        flights.release("a", paused=verdict == "pause")
    assert verdicts(flights) == {"a": verdict}
    assert verdicts(flights) == {}


def test_a_trial_is_stopped_at_any_time() -> None:
    flights = in_training("a")
    flights.release("a")
    assert verdicts(flights) == {"a": "stop"}
    assert flights.any_in_hand()  # until the lane has saved what there is
    flights.finish(end("a", "stopped", steps=1))
    assert not flights.any_in_hand()


def test_a_stopped_trial_is_not_merely_paused_by_what_its_actor_says_later() -> None:
    flights = in_training("a")
    flights.release("a")
    flights.release("a", paused=True)
    assert verdicts(flights) == {"a": "stop"}


def test_a_trial_released_before_a_lane_took_it_is_not_trained_until_it_is_submitted_again() -> None:
    flights = Flights()
    submitted(flights, "a", "b")
    flights.release("a")
    assert [spec.trial_id for spec in taken(flights)] == ["b"]
    assert told(flights) == []  # nobody began it
    submitted(flights, "a")
    assert [(spec.trial_id, spec.attempt) for spec in taken(flights)] == [("a", 1)]


def test_a_queued_trial_with_results_ends_with_its_last_when_it_is_released() -> None:
    flights = in_training("a")
    evaluated(flights, "a", 1, loss=0.5)
    flights.take_back("lane-0")  # back into the queue
    flights.release("a")
    assert taken(flights) == []
    event = told(flights)[-1]
    assert isinstance(event, TrialEnded)
    assert (event.status, event.attempt, event.metrics) == ("stopped", 1, {"steps": 1, "eval_loss": 0.5})
    flights.release("a")
    assert len(told(flights)) == 2  # once


def test_a_queued_trial_that_was_begun_ends_also_without_a_result() -> None:
    flights = in_training("a")
    flights.take_back("lane-0")
    flights.release("a")
    (event,) = told(flights)
    assert isinstance(event, TrialEnded) and event.status == "stopped" and event.metrics == {}


# Pauses


def test_a_paused_trial_leaves_its_slot_and_comes_back_with_its_checkpoint() -> None:
    flights = in_training("a")
    evaluated(flights, "a", 3, index=0)
    flights.release("a", paused=True)
    submitted(flights, "b")
    orders = flights.orders("lane-0", 1)
    assert orders.verdicts == {"a": "pause"} and [spec.trial_id for spec in begun(flights, orders)] == ["b"]
    assert told(flights)[1:] == []  # it did not end
    flights.submit("a", 0, {"r": 9}, restored=3)
    assert taken(flights) == [TrialSpec(trial_id="a", number=0, params={"r": 9}, attempt=2, decided=3)]
    flights.report([evaluation("a", 4)])
    assert bare(heard(flights, "a", 0)) == {"steps": 4, "eval_loss": 1.0}  # its results begin anew


def test_a_trial_that_goes_on_before_its_lane_heard_of_the_pause_keeps_its_slot() -> None:
    flights = in_training("a")
    evaluated(flights, "a", 1)
    flights.release("a", paused=True)
    flights.submit("a", 0, PARAMS, seen=1)
    assert flights.orders("lane-0", ALL) == Orders(verdicts={"a": "go_on"})
    flights.report([evaluation("a", 2)])
    assert (heard(flights, "a", 1) or {})["steps"] == 2


def test_a_trial_that_goes_on_after_its_lane_heard_of_the_pause_begins_behind_its_last_result() -> None:
    flights = in_training("a")
    evaluated(flights, "a", 2, index=0)
    flights.release("a", paused=True)
    assert verdicts(flights) == {"a": "pause"}
    flights.submit("a", 0, PARAMS, seen=1)
    assert [(spec.attempt, spec.decided) for spec in taken(flights)] == [(2, 2)]
    flights.report([evaluation("a", 3)])
    assert (heard(flights, "a", 1) or {})["steps"] == 3


def test_an_actor_that_speaks_late_does_not_pause_a_trial_that_went_on_in_another() -> None:
    flights = Flights()
    lease = flights.submit("a", 0, PARAMS)
    taken(flights)
    evaluated(flights, "a", 1)
    flights.release("a", lease, paused=True)
    assert verdicts(flights) == {"a": "pause"}
    newer = flights.submit("a", 0, PARAMS, restored=1)
    taken(flights)
    flights.release("a", lease, paused=True)
    assert verdicts(flights) == {}
    flights.release("a", newer, paused=True)
    assert verdicts(flights) == {"a": "pause"}


def test_a_trial_that_is_restored_and_stopped_before_it_reports_ends_with_what_was_known() -> None:
    flights = in_training("a")
    evaluated(flights, "a", 1, loss=0.5)
    flights.release("a", paused=True)
    verdicts(flights)
    flights.submit("a", 0, PARAMS, restored=1)
    flights.release("a")
    (event,) = told(flights)[1:]
    assert isinstance(event, TrialEnded) and event.metrics == {"steps": 1, "eval_loss": 0.5}


def test_taking_turns_a_trial_that_goes_on_makes_room_for_one_that_waits() -> None:
    flights = in_training("a", takes_turns=True)
    submitted(flights, "a", "b")
    evaluated(flights, "a", 1)
    flights.ask("a", 1)
    orders = flights.orders("lane-0", 1)
    assert orders.verdicts == {"a": "pause"} and [spec.trial_id for spec in begun(flights, orders)] == ["b"]
    assert [(spec.trial_id, spec.attempt, spec.decided) for spec in taken(flights)] == [("a", 2, 1)]
    flights.report([evaluation("a", 2)])
    assert bare(heard(flights, "a", 1)) == {"steps": 2, "eval_loss": 1.0}
    flights.ask("a", 2)
    assert verdicts(flights) == {"a": "go_on"}  # nobody waits


def test_a_trial_that_ends_while_it_waits_for_its_turn_is_not_taken_again() -> None:
    flights = in_training("a", takes_turns=True)
    submitted(flights, "a", "b")
    evaluated(flights, "a", 1)
    flights.ask("a", 1)
    assert verdicts(flights) == {"a": "pause"}
    flights.finish(end("a", "failed"))  # by an engine that cannot pause
    assert heard(flights, "a", 1) == {"done": True, "outcome": "failed"}
    assert [spec.trial_id for spec in taken(flights)] == ["b"]


# Lanes that die


def test_a_restarted_lane_trains_its_trial_again_and_repeats_nothing_that_was_decided() -> None:
    flights = in_training("a")
    evaluated(flights, "a", 1)
    flights.ask("a", 1)
    assert verdicts(flights) == {"a": "go_on"}
    flights.take_back("lane-0")
    assert [(spec.attempt, spec.decided) for spec in taken(flights)] == [(2, 1)]
    flights.report([evaluation("a", 1)])  # from an engine that begins anew
    assert verdicts(flights) == {"a": "go_on"}
    assert len(told(flights)) == 1
    flights.report([evaluation("a", 2)])
    assert bare(heard(flights, "a", 1)) == {"steps": 2, "eval_loss": 1.0}


def test_an_evaluation_that_nobody_decided_about_when_the_lane_died_is_asked_about_again() -> None:
    flights = in_training("a")
    evaluated(flights, "a", 1)
    flights.ask("a", 1)
    verdicts(flights)
    flights.report([evaluation("a", 2)])
    assert heard(flights, "a", 1) is not None
    flights.take_back("lane-0")
    assert [spec.decided for spec in taken(flights)] == [1]  # its checkpoint is of step 2
    flights.report([evaluation("a", 2)])
    assert verdicts(flights) == {} and len(told(flights)) == 2
    flights.ask("a", 2)
    assert verdicts(flights) == {"a": "go_on"}


def test_trials_of_a_dead_lane_come_first_and_in_the_order_of_their_numbers() -> None:
    flights = in_training("d", "c", "b")
    submitted(flights, "d", "c", "b", "a")
    for trial, steps in (("c", 2), ("b", 1)):
        for step in range(1, steps + 1):
            evaluated(flights, trial, step)
            flights.ask(trial, step)
            assert verdicts(flights) == {trial: "go_on"}
    flights.take_back("lane-0")
    specs = taken(flights)
    assert [(spec.trial_id, spec.number, spec.attempt, spec.decided) for spec in specs] == [
        ("d", 0, 2, 0),
        ("c", 1, 2, 2),
        ("b", 2, 2, 1),
        ("a", 3, 1, 0),
    ]


def test_of_a_dead_lanes_trials_those_that_tune_let_go_are_not_trained_again() -> None:
    flights = in_training("stopped", "told", "paused", "wanted")
    for trial in ("stopped", "told", "paused"):
        evaluated(flights, trial, 1, loss=0.5)
    flights.release("told")
    assert verdicts(flights) == {"told": "stop"}
    flights.release("stopped")
    flights.release("paused", paused=True)
    flights.take_back("lane-0")
    assert [spec.trial_id for spec in taken(flights)] == ["wanted"]
    ends = [event for event in told(flights) if isinstance(event, TrialEnded)]
    assert {event.trial_id for event in ends} == {"stopped", "told"}
    assert {(event.status, event.metrics["eval_loss"]) for event in ends} == {("stopped", 0.5)}
    flights.submit("paused", 2, PARAMS, restored=1)
    assert [(spec.trial_id, spec.attempt) for spec in taken(flights)] == [("paused", 2)]


def test_a_trial_under_which_processes_keep_dying_fails() -> None:
    flights = Flights()
    submitted(flights, "a")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert [spec.attempt for spec in taken(flights)] == [attempt]
        flights.take_back("lane-0")
    assert heard(flights, "a", 0) == {"done": True, "outcome": "failed"}
    (event,) = told(flights)
    assert isinstance(event, TrialEnded) and event.status == "failed" and f"{MAX_ATTEMPTS} times" in event.message
    submitted(flights, "b")
    assert [spec.trial_id for spec in taken(flights)] == ["b"]


def test_pauses_are_not_deaths() -> None:
    flights = in_training("a")
    for step in range(1, MAX_ATTEMPTS + 3):
        evaluated(flights, "a", step, index=0)
        flights.release("a", paused=True)
        assert verdicts(flights) == {"a": "pause"}
        flights.submit("a", 0, PARAMS, restored=step)
        assert [spec.attempt for spec in taken(flights)] == [step + 1]
    flights.take_back("lane-0")
    assert [spec.decided for spec in taken(flights)] == [MAX_ATTEMPTS + 2]


def test_progress_is_kept_while_a_trial_is_in_hand() -> None:
    flights = in_training("a", "b")
    for number, trial in enumerate(("a", "b")):
        flights.progress[trial] = Progress(trial_id=trial, number=number, step=3, train_loss=1.0)
    assert list(flights.progress) == ["a", "b"]
    flights.finish(end("a", steps=3))
    flights.release("b", paused=True)
    verdicts(flights)
    assert flights.progress == {}


# Searches that are taken up again


def test_a_trial_that_an_earlier_run_ended_is_answered_and_not_trained() -> None:
    ended = final_result(end("a", steps=9, eval_loss=0.5))
    first = {"steps": 3, "eval_loss": 0.7}
    flights = Flights({"a": Past(attempts=1, results=[first, ended], ended=True), "b": Past(attempts=2)})
    submitted(flights, "a", "b")
    assert [bare(heard(flights, "a", index)) for index in (0, 1)] == [first, ended]
    assert [(spec.trial_id, spec.attempt) for spec in taken(flights)] == [("b", 3)]
    flights.release("a")
    assert told(flights) == []


def test_a_trial_that_an_earlier_run_left_is_replayed_to_tune_and_trained_on() -> None:
    known = [{"steps": step, "eval_loss": 1.0} for step in (1, 2)]
    flights = Flights({"a": Past(attempts=1, results=known)})
    submitted(flights, "a")
    assert [(spec.attempt, spec.decided) for spec in taken(flights)] == [(2, 0)]
    flights.report([evaluation("a", 2)])  # its checkpoint's
    assert [bare(heard(flights, "a", index)) for index in (0, 1)] == known
    assert verdicts(flights) == {}
    flights.ask("a", 2)
    assert verdicts(flights) == {"a": "go_on"}
    assert told(flights) == []
    flights.report([evaluation("a", 3)])
    assert bare(heard(flights, "a", 2)) == {"steps": 3, "eval_loss": 1.0}


def test_a_trial_that_an_earlier_run_left_may_be_stopped_before_it_is_trained_on() -> None:
    known = {"steps": 1, "eval_loss": 0.5}
    flights = Flights({"a": Past(attempts=1, results=[known])})
    submitted(flights, "a")
    assert bare(heard(flights, "a", 0)) == known
    flights.release("a")
    (event,) = told(flights)
    assert isinstance(event, TrialEnded)
    assert (event.status, event.attempt, event.metrics) == ("stopped", 1, known)


@pytest.mark.parametrize("status", ["completed", "stopped", "failed"])
def test_a_failed_trial_has_no_metric_for_anyone_to_mistake(status: str) -> None:
    result = final_result(end("a", status, steps=3, eval_loss=0.5))
    assert result["outcome"] == status and result["done"] is True
    assert ("eval_loss" in result) == (status != "failed")


def test_a_rung_knows_what_an_earlier_run_saw_of_it() -> None:
    past = {"old": Past(attempts=1, results=[{"steps": 2, "eval_loss": 0.5, "done": True}], ended=True)}
    flights = Flights(past)
    submitted(flights, "a")
    taken(flights)
    flights.report([evaluation("a", 2, 0.25)])
    assert (heard(flights, "a", 0) or {})[RUNG] == [0.5, 0.25]


def test_a_trial_that_failed_before_tune_paused_it_is_over_when_tune_comes_back_to_it() -> None:
    flights = in_training("a")
    for _ in range(MAX_ATTEMPTS - 1):
        flights.take_back("lane-0")
        taken(flights)
    flights.report([evaluation("a", 1)])
    flights.take_back("lane-0")
    assert isinstance(told(flights)[-1], TrialEnded)
    flights.release("a", paused=True)  # Tune has read no further than the evaluation
    flights.submit("a", 0, PARAMS, restored=1)
    assert heard(flights, "a", 0) == {"done": True, "outcome": "failed"}
    assert taken(flights) == []


def test_a_trial_that_an_earlier_run_ended_copies_no_other() -> None:
    ended = final_result(end("a", steps=9, eval_loss=0.5))
    flights = Flights({"a": Past(attempts=1, results=[{"steps": 3, "eval_loss": 0.7}, ended], ended=True)})
    submitted(flights, "a")
    assert heard(flights, "a", 0) is not None
    flights.submit("a", 0, {"r": 9}, restored=6)  # another's checkpoint
    assert heard(flights, "a", 0) == ended
    assert taken(flights) == []


def test_a_trial_that_was_handed_to_a_process_that_is_dead_was_never_begun() -> None:
    flights = Flights()
    submitted(flights, "a")
    for _ in range(MAX_ATTEMPTS):
        flights.orders("lane-0", 1)
        flights.take_back("lane-0")  # nobody said that it began
    (spec,) = flights.orders("lane-0", 1).trials
    assert spec.attempt == 1
    flights.take_back("lane-0")
    flights.release("a")
    assert flights.events == []  # the registry would refuse the end of a trial that it has not heard of
    submitted(flights, "a")
    assert [spec.attempt for spec in taken(flights)] == [1]


def test_an_end_is_that_of_the_last_attempt_that_began() -> None:
    flights = in_training("a")
    flights.take_back("lane-0")
    flights.orders("lane-0", 1)
    flights.take_back("lane-0")
    flights.release("a")
    (event,) = told(flights)
    assert isinstance(event, TrialEnded) and event.attempt == 1


def test_a_trial_that_is_stopped_before_a_lane_that_dies_began_it_is_over_and_unheard_of() -> None:
    flights = Flights()
    submitted(flights, "a")
    flights.orders("lane-0", 1)
    assert flights.stop(0, "ann") == ""
    flights.take_back("lane-0")
    assert flights.events == [] and taken(flights) == []
    assert heard(flights, "a", 0) == {"done": True, "outcome": "stopped"}
