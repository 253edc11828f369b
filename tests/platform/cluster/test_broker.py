"""The broker as the plain asyncio object it is: who gets which trial, and who hears what of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from rankloom.cluster.broker import MAX_ATTEMPTS, Broker
from rankloom.cluster.flight import RUNG, LaneState, Past, Progress, final_result
from rankloom.training.exchange import Orders, TrialSpec, Verdict
from rankloom_registry import TrialEnded, TrialReported, TrialStarted

PARAMS = {"r": 8}
ALL = 100  # slots enough for everything that is queued
OVER = Orders(over=True)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def one_lane(past: dict[str, Past] | None = None, *, takes_turns: bool = False) -> Broker:
    broker = Broker(["lane-0"], past, takes_turns=takes_turns)
    await broker.lane_started("lane-0", 1)
    await broker.lane_ready("lane-0")
    return broker


async def submitted(broker: Broker, *trials: str) -> None:
    for number, trial in enumerate(trials):
        await broker.submit(trial, number, PARAMS)


async def taken(broker: Broker, free: int = ALL, lane: str = "lane-0") -> list[TrialSpec]:
    return list((await broker.orders(lane, free, 0)).trials)


async def verdicts(broker: Broker, lane: str = "lane-0") -> dict[str, Verdict]:
    return dict((await broker.orders(lane, 0, 0)).verdicts)


async def in_training(*trials: str, takes_turns: bool = False) -> Broker:
    """A broker whose lane has begun the trials."""
    broker = await one_lane(takes_turns=takes_turns)
    await submitted(broker, *trials)
    assert len(await taken(broker)) == len(trials)
    return broker


async def evaluated(broker: Broker, trial: str, step: int, *, index: int | None = None, loss: float = 1.0) -> None:
    """The lane reports and Tune hears of it."""
    await broker.report([evaluation(trial, step, loss)])
    assert (await broker.next_result(trial, step - 1 if index is None else index) or {})["steps"] == step


async def asking(broker: Broker, trial: str, index: int) -> asyncio.Task[dict[str, Any] | None]:
    """Tune lets a trial go on: it asks for the next result."""
    asked = asyncio.create_task(broker.next_result(trial, index))
    await settle()
    return asked


def bare(result: dict[str, Any] | None) -> dict[str, Any]:
    """A result without its rung."""
    return {name: value for name, value in (result or {}).items() if name != RUNG}


def evaluation(trial: str, step: int, loss: float = 1.0) -> TrialReported:
    return TrialReported(trial_id=trial, step=step, metrics={"steps": step, "eval_loss": loss})


def end(trial: str, status: str = "completed", **metrics: float) -> TrialEnded:
    return TrialEnded(trial_id=trial, status=status, metrics=metrics)


# Who gets which trial


def test_trials_are_taken_in_the_order_in_which_they_were_submitted() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        for number, trial in enumerate(["b", "a", "c"]):
            await broker.submit(trial, number, {"r": number})
        specs = [*await taken(broker, 2), *await taken(broker, 2)]
        assert [(spec.trial_id, spec.number, spec.params, spec.attempt, spec.decided) for spec in specs] == [
            ("b", 0, {"r": 0}, 1, 0),
            ("a", 1, {"r": 1}, 1, 0),
            ("c", 2, {"r": 2}, 1, 0),
        ]

    run(scenario())


def test_a_lane_without_a_free_slot_gets_no_trial_and_one_with_some_gets_no_more() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await submitted(broker, "a", "b", "c")
        assert [len(await taken(broker, free)) for free in (0, 2, 2)] == [0, 2, 1]

    run(scenario())


def test_orders_wait_for_a_trial_as_long_as_they_are_told() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        assert await broker.orders("lane-0", 1, 0) == await broker.orders("lane-0", 1, 0.01) == Orders()
        waiting = asyncio.create_task(broker.orders("lane-0", 1, None))
        await settle()
        assert not waiting.done()
        await submitted(broker, "a")
        assert [spec.trial_id for spec in (await waiting).trials] == ["a"]

    run(scenario())


def test_two_lanes_never_get_the_same_trial() -> None:
    async def scenario() -> None:
        broker = Broker(["lane-0", "lane-1"])
        for lane in ("lane-0", "lane-1"):
            await broker.lane_started(lane, 1)
        waiting = [asyncio.create_task(broker.orders(lane, 1, 0.05)) for lane in ("lane-0", "lane-1")]
        await settle()
        await submitted(broker, "a")
        assert sorted(len(orders.trials) for orders in await asyncio.gather(*waiting)) == [0, 1]

    run(scenario())


def test_a_trial_keeps_the_first_name_it_was_given() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        assert await broker.name("x", "s-0") == "s-0"
        assert await broker.name("y", "s-1") == "s-1"
        assert await broker.name("y", "s-0") == "s-1"  # its configuration was copied from x

    run(scenario())


# What is decided


def test_a_lane_waits_for_tunes_decision_and_goes_on() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await broker.report([evaluation("a", 1, 0.5)])
        assert bare(await broker.next_result("a", 0)) == {"steps": 1, "eval_loss": 0.5}
        assert await verdicts(broker) == {}
        waiting = asyncio.create_task(broker.orders("lane-0", 0, None))
        asked = await asking(broker, "a", 1)
        assert await waiting == Orders(verdicts={"a": "go_on"})
        await broker.finish(end("a", steps=2, eval_loss=0.25), [evaluation("a", 2, 0.25)])
        assert bare(await asked) == {"steps": 2, "eval_loss": 0.25, "done": True, "outcome": "completed"}
        kinds = [(type(event), getattr(event, "step", None)) for event in await broker.events(0, 0.0)]
        assert kinds == [(TrialReported, 1), (TrialReported, 2), (TrialEnded, None)]

    run(scenario())


def test_each_trial_gets_its_own_verdict() -> None:
    async def scenario() -> None:
        broker = await in_training("a", "b", "c", "d")
        for trial in ("a", "b", "c", "d"):
            await evaluated(broker, trial, 1)
        await broker.release("b")
        await broker.release("c", paused=True)
        asked = await asking(broker, "a", 1)
        assert await verdicts(broker) == {"a": "go_on", "b": "stop", "c": "pause"}
        asked.cancel()

    run(scenario())


@pytest.mark.parametrize("verdict", ["go_on", "stop", "pause"])
def test_a_verdict_is_given_once(verdict: Verdict) -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 1)
        asked = await asking(broker, "a", 1) if verdict == "go_on" else None
        if verdict != "go_on":
            await broker.release("a", paused=verdict == "pause")
        assert await verdicts(broker) == {"a": verdict}
        assert await verdicts(broker) == {}
        if asked is not None:
            asked.cancel()

    run(scenario())


def test_a_trial_is_stopped_at_any_time() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await broker.release("a")
        assert await verdicts(broker) == {"a": "stop"}
        assert not await broker.drained(0.0)  # until the lane has saved what there is
        await broker.finish(end("a", "stopped", steps=1))
        assert await broker.drained(0.0)

    run(scenario())


def test_a_stopped_trial_is_not_merely_paused_by_what_its_actor_says_later() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await broker.release("a")
        await broker.release("a", paused=True)
        assert await verdicts(broker) == {"a": "stop"}

    run(scenario())


def test_a_trial_released_before_a_lane_took_it_is_not_trained_until_it_is_submitted_again() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await submitted(broker, "a", "b")
        await broker.release("a")
        assert [spec.trial_id for spec in await taken(broker)] == ["b"]
        assert await broker.events(0, 0.0) == []  # nobody began it
        await submitted(broker, "a")
        assert [(spec.trial_id, spec.attempt) for spec in await taken(broker)] == [("a", 1)]

    run(scenario())


def test_a_queued_trial_with_results_ends_with_its_last_when_it_is_released() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 1, loss=0.5)
        await broker.lane_started("lane-0", 2)  # back into the queue
        await broker.release("a")
        assert await taken(broker) == []
        event = (await broker.events(0, 0.0))[-1]
        assert isinstance(event, TrialEnded)
        assert (event.status, event.attempt, event.metrics) == ("stopped", 1, {"steps": 1, "eval_loss": 0.5})
        await broker.release("a")
        assert len(await broker.events(0, 0.0)) == 2  # once

    run(scenario())


def test_a_queued_trial_that_was_begun_ends_also_without_a_result() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await broker.lane_started("lane-0", 2)
        await broker.release("a")
        (event,) = await broker.events(0, 0.0)
        assert isinstance(event, TrialEnded) and event.status == "stopped" and event.metrics == {}

    run(scenario())


def test_a_trial_whose_tune_actor_died_is_replayed_to_the_next_and_goes_on() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 1)
        await submitted(broker, "a")
        assert await taken(broker) == []  # its lane has it
        assert bare(await broker.next_result("a", 0)) == {"steps": 1, "eval_loss": 1.0}
        assert await verdicts(broker) == {}
        asked = await asking(broker, "a", 1)
        assert await verdicts(broker) == {"a": "go_on"}
        asked.cancel()

    run(scenario())


# Pauses


def test_a_paused_trial_leaves_its_slot_and_comes_back_with_its_checkpoint() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 3, index=0)
        await broker.release("a", paused=True)
        await submitted(broker, "b")
        orders = await broker.orders("lane-0", 1, None)
        assert orders.verdicts == {"a": "pause"} and [spec.trial_id for spec in orders.trials] == ["b"]
        assert await broker.events(1, 0.0) == []  # it did not end
        await broker.submit("a", 0, {"r": 9}, restored=3)
        assert await taken(broker) == [TrialSpec(trial_id="a", number=0, params={"r": 9}, attempt=2, decided=3)]
        await broker.report([evaluation("a", 4)])
        assert bare(await broker.next_result("a", 0)) == {"steps": 4, "eval_loss": 1.0}  # its results begin anew

    run(scenario())


def test_a_trial_that_is_restored_before_its_lane_heard_of_the_pause_waits_for_the_lane() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 3, index=0)
        await broker.release("a", paused=True)
        again = asyncio.create_task(broker.submit("a", 0, PARAMS, restored=3))
        await settle()
        assert not again.done()
        assert await verdicts(broker) == {"a": "pause"}
        await again
        assert [(spec.attempt, spec.decided) for spec in await taken(broker)] == [(2, 3)]

    run(scenario())


def test_a_trial_that_goes_on_before_its_lane_heard_of_the_pause_keeps_its_slot() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 1)
        await broker.release("a", paused=True)
        await broker.submit("a", 0, PARAMS, seen=1)
        assert await broker.orders("lane-0", ALL, 0) == Orders(verdicts={"a": "go_on"})
        await broker.report([evaluation("a", 2)])
        assert (await broker.next_result("a", 1) or {})["steps"] == 2

    run(scenario())


def test_a_trial_that_goes_on_after_its_lane_heard_of_the_pause_begins_behind_its_last_result() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 2, index=0)
        await broker.release("a", paused=True)
        assert await verdicts(broker) == {"a": "pause"}
        await broker.submit("a", 0, PARAMS, seen=1)
        assert [(spec.attempt, spec.decided) for spec in await taken(broker)] == [(2, 2)]
        await broker.report([evaluation("a", 3)])
        assert (await broker.next_result("a", 1) or {})["steps"] == 3

    run(scenario())


def test_an_actor_that_speaks_late_does_not_pause_a_trial_that_went_on_in_another() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        lease = await broker.submit("a", 0, PARAMS)
        await taken(broker)
        await evaluated(broker, "a", 1)
        await broker.release("a", lease, paused=True)
        assert await verdicts(broker) == {"a": "pause"}
        newer = await broker.submit("a", 0, PARAMS, restored=1)
        await taken(broker)
        await broker.release("a", lease, paused=True)
        assert await verdicts(broker) == {}
        await broker.release("a", newer, paused=True)
        assert await verdicts(broker) == {"a": "pause"}

    run(scenario())


def test_a_trial_that_copies_another_is_taken_from_its_lane_and_does_not_end() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 3, index=0)
        recalled = asyncio.create_task(broker.recall("a"))  # nobody released it: it had no checkpoint to take
        await settle()
        assert not recalled.done()
        assert await verdicts(broker) == {"a": "pause"}
        await recalled
        await broker.submit("a", 0, {"r": 9}, restored=6)
        assert [(spec.params, spec.decided) for spec in await taken(broker)] == [({"r": 9}, 6)]
        assert not [event for event in await broker.events(0, 0.0) if isinstance(event, TrialEnded)]

    run(scenario())


def test_a_recalled_trial_is_taken_from_the_queue_as_well() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await broker.lane_started("lane-0", 2)
        await broker.recall("a")
        await broker.recall("unknown")
        assert await taken(broker) == []

    run(scenario())


def test_a_paused_trial_that_tune_dismisses_ends_with_its_last_result() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit(await broker.name("x", "a"), 0, PARAMS)
        await taken(broker)
        await evaluated(broker, "a", 1, loss=0.5)
        await broker.release("a", paused=True)
        await verdicts(broker)
        for tune_id in ("x", "x", "unknown"):
            await broker.dismiss(tune_id)
        (event,) = await broker.events(1, 0.0)
        assert isinstance(event, TrialEnded)
        assert (event.status, event.metrics) == ("stopped", {"steps": 1, "eval_loss": 0.5})

    run(scenario())


def test_a_trial_that_is_dismissed_before_its_lane_heard_of_the_pause_is_stopped_there() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit(await broker.name("x", "a"), 0, PARAMS)
        await taken(broker)
        await evaluated(broker, "a", 1)
        await broker.release("a", paused=True)
        await broker.dismiss("x")
        assert await verdicts(broker) == {"a": "stop"}
        await broker.finish(end("a", "stopped", steps=1))
        assert len(await broker.events(0, 0.0)) == 2

    run(scenario())


def test_a_trial_that_is_restored_and_stopped_before_it_reports_ends_with_what_was_known() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 1, loss=0.5)
        await broker.release("a", paused=True)
        await verdicts(broker)
        await broker.submit("a", 0, PARAMS, restored=1)
        await broker.release("a")
        (event,) = await broker.events(1, 0.0)
        assert isinstance(event, TrialEnded) and event.metrics == {"steps": 1, "eval_loss": 0.5}

    run(scenario())


def test_taking_turns_a_trial_that_goes_on_makes_room_for_one_that_waits() -> None:
    async def scenario() -> None:
        broker = await in_training("a", takes_turns=True)
        await submitted(broker, "a", "b")
        await evaluated(broker, "a", 1)
        asked = await asking(broker, "a", 1)
        orders = await broker.orders("lane-0", 1, None)
        assert orders.verdicts == {"a": "pause"} and [spec.trial_id for spec in orders.trials] == ["b"]
        assert [(spec.trial_id, spec.attempt, spec.decided) for spec in await taken(broker)] == [("a", 2, 1)]
        await broker.report([evaluation("a", 2)])
        assert bare(await asked) == {"steps": 2, "eval_loss": 1.0}
        asked = await asking(broker, "a", 2)
        assert await verdicts(broker) == {"a": "go_on"}  # nobody waits
        asked.cancel()

    run(scenario())


def test_a_trial_that_ends_while_it_waits_for_its_turn_is_not_taken_again() -> None:
    async def scenario() -> None:
        broker = await in_training("a", takes_turns=True)
        await submitted(broker, "a", "b")
        await evaluated(broker, "a", 1)
        asked = await asking(broker, "a", 1)
        assert await verdicts(broker) == {"a": "pause"}
        await broker.finish(end("a", "failed"))  # by an engine that cannot pause
        assert await asked == {"done": True, "outcome": "failed"}
        assert [spec.trial_id for spec in await taken(broker)] == ["b"]

    run(scenario())


# Lanes that die


def test_a_restarted_lane_trains_its_trial_again_and_repeats_nothing_that_was_decided() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 1)
        asked = await asking(broker, "a", 1)
        assert await verdicts(broker) == {"a": "go_on"}
        await broker.lane_started("lane-0", 2)
        assert [(spec.attempt, spec.decided) for spec in await taken(broker)] == [(2, 1)]
        await broker.report([evaluation("a", 1)])  # from an engine that begins anew
        assert await verdicts(broker) == {"a": "go_on"}
        assert len(await broker.events(0, 0.0)) == 1
        await broker.report([evaluation("a", 2)])
        assert bare(await asked) == {"steps": 2, "eval_loss": 1.0}

    run(scenario())


def test_an_evaluation_that_nobody_decided_about_when_the_lane_died_is_asked_about_again() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 1)
        asked = await asking(broker, "a", 1)
        await verdicts(broker)
        await broker.report([evaluation("a", 2)])
        assert await asked is not None
        await broker.lane_started("lane-0", 2)
        assert [spec.decided for spec in await taken(broker)] == [1]  # its checkpoint is of step 2
        await broker.report([evaluation("a", 2)])
        assert await verdicts(broker) == {} and len(await broker.events(0, 0.0)) == 2
        asked = await asking(broker, "a", 2)
        assert await verdicts(broker) == {"a": "go_on"}
        asked.cancel()

    run(scenario())


def test_trials_of_a_dead_lane_come_first_and_in_the_order_of_their_numbers() -> None:
    async def scenario() -> None:
        broker = await in_training("d", "c", "b")
        await submitted(broker, "d", "c", "b", "a")
        for trial, steps in (("c", 2), ("b", 1)):
            for step in range(1, steps + 1):
                await evaluated(broker, trial, step)
                asked = await asking(broker, trial, step)
                assert await verdicts(broker) == {trial: "go_on"}
                asked.cancel()
        await broker.lane_started("lane-0", 2)
        specs = await taken(broker)
        assert [(spec.trial_id, spec.number, spec.attempt, spec.decided) for spec in specs] == [
            ("d", 0, 2, 0),
            ("c", 1, 2, 2),
            ("b", 2, 2, 1),
            ("a", 3, 1, 0),
        ]

    run(scenario())


def test_of_a_dead_lanes_trials_those_that_tune_let_go_are_not_trained_again() -> None:
    async def scenario() -> None:
        broker = await in_training("stopped", "told", "paused", "wanted")
        for trial in ("stopped", "told", "paused"):
            await evaluated(broker, trial, 1, loss=0.5)
        await broker.release("told")
        assert await verdicts(broker) == {"told": "stop"}
        await broker.release("stopped")
        await broker.release("paused", paused=True)
        await broker.lane_started("lane-0", 2)
        assert [spec.trial_id for spec in await taken(broker)] == ["wanted"]
        ends = [event for event in await broker.events(0, 0.0) if isinstance(event, TrialEnded)]
        assert {event.trial_id for event in ends} == {"stopped", "told"}
        assert {(event.status, event.metrics["eval_loss"]) for event in ends} == {("stopped", 0.5)}
        await broker.submit("paused", 2, PARAMS, restored=1)
        assert [(spec.trial_id, spec.attempt) for spec in await taken(broker)] == [("paused", 2)]

    run(scenario())


def test_a_request_of_a_dead_process_takes_no_trial_from_its_successor() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        dead = asyncio.create_task(broker.orders("lane-0", 1, None))
        await settle()
        await broker.lane_started("lane-0", 2)
        await submitted(broker, "a")
        assert [spec.trial_id for spec in await taken(broker)] == ["a"]
        assert await dead == OVER

    run(scenario())


def test_a_trial_under_which_processes_keep_dying_fails() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await submitted(broker, "a")
        for attempt in range(1, MAX_ATTEMPTS + 1):
            assert [spec.attempt for spec in await taken(broker)] == [attempt]
            await broker.lane_started("lane-0", attempt)
        assert await broker.next_result("a", 0) == {"done": True, "outcome": "failed"}
        (event,) = await broker.events(0, 0.0)
        assert isinstance(event, TrialEnded) and event.status == "failed" and f"{MAX_ATTEMPTS} times" in event.message
        await submitted(broker, "b")
        assert [spec.trial_id for spec in await taken(broker)] == ["b"]

    run(scenario())


def test_pauses_are_not_deaths() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        for step in range(1, MAX_ATTEMPTS + 3):
            await evaluated(broker, "a", step, index=0)
            await broker.release("a", paused=True)
            assert await verdicts(broker) == {"a": "pause"}
            await broker.submit("a", 0, PARAMS, restored=step)
            assert [spec.attempt for spec in await taken(broker)] == [step + 1]
        await broker.lane_started("lane-0", 2)
        assert [spec.decided for spec in await taken(broker)] == [MAX_ATTEMPTS + 2]

    run(scenario())


def test_the_search_closes_when_no_lane_is_left_and_not_before() -> None:
    async def scenario() -> None:
        broker = Broker(["lane-0", "lane-1"])
        await submitted(broker, "a", "b")
        await broker.lane_started("lane-0", 1)
        assert len(await taken(broker)) == 2
        await broker.lane_ended("lane-0", "no memory")  # before lane-1 is up
        await broker.lane_ended("lane-0")  # its trainer returns: the first reason stays
        await broker.lane_started("lane-1", 2)
        assert [(spec.trial_id, spec.attempt) for spec in await taken(broker, lane="lane-1")] == [("a", 2), ("b", 2)]
        result = asyncio.create_task(broker.next_result("a", 0))
        await broker.lane_ended("lane-1", "no disk")
        assert await result is None
        lanes, _ = await broker.state()
        assert [(lane.state, lane.message) for lane in lanes] == [("failed", "no memory"), ("failed", "no disk")]
        assert await broker.drained(5.0)

    run(scenario())


# The end


def test_close_lets_everyone_go_and_records_nothing_more() -> None:
    async def scenario() -> None:
        broker = await in_training("a", "b")
        await evaluated(broker, "a", 1)
        asked = await asking(broker, "a", 1)
        await verdicts(broker)
        orders = asyncio.create_task(broker.orders("lane-0", 0, None))
        await settle()
        await broker.close()
        assert await asyncio.gather(asked, orders, broker.drained(5.0)) == [None, OVER, True]
        before = await broker.events(0, 0.0)
        for trial in ("a", "b"):
            await broker.release(trial)  # as Tune does, on its way out: the trial was cut short all the same
        await broker.started(TrialStarted(trial_id="a", search_id="s", number=0, params=PARAMS, attempt=2))
        await broker.report([evaluation("a", 2)])
        await broker.finish(end("a", "stopped", steps=1), [evaluation("a", 1)])
        await broker.lane_ended("lane-0")
        assert await broker.events(0, 0.0) == before

    run(scenario())


def test_orders_with_trials_in_hand_say_that_the_search_is_over() -> None:
    async def scenario() -> None:
        broker = await in_training("a", "b")
        await broker.report([evaluation("a", 1)])
        await broker.release("b")
        await broker.close()
        assert await broker.orders("lane-0", 1, None) == OVER

    run(scenario())


def test_a_restoring_actor_is_let_go_when_the_search_closes() -> None:
    async def scenario() -> None:
        broker = await in_training("a")
        await evaluated(broker, "a", 1)
        tasks = [asyncio.create_task(broker.recall("a")), asyncio.create_task(broker.submit("a", 0, {}, restored=1))]
        await settle()
        assert not any(task.done() for task in tasks)
        await broker.close()
        await asyncio.gather(*tasks)
        assert await broker.next_result("a", 0) is None

    run(scenario())


def test_drained_waits_for_what_lanes_have_in_hand_only() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        assert await broker.drained(0.0)
        await submitted(broker, "a")
        assert len(await taken(broker)) == 1
        assert not await broker.drained(0.0)
        drained = asyncio.create_task(broker.drained(5.0))
        await settle()
        await broker.finish(end("a", "stopped", steps=1))
        assert await drained

    run(scenario())


def test_drained_ends_whatever_tune_left_behind() -> None:
    async def scenario() -> None:
        broker = await in_training("trained", "paused")
        await evaluated(broker, "paused", 1)
        await broker.release("paused", paused=True)
        await verdicts(broker)
        await submitted(broker, "trained", "paused", "queued")
        await broker.release("paused", paused=True)
        assert not await broker.drained(0.0)
        assert await verdicts(broker) == {"trained": "stop"}
        assert await taken(broker) == []
        ends = [event for event in await broker.events(0, 0.0) if isinstance(event, TrialEnded)]
        assert [(event.trial_id, event.status) for event in ends] == [("paused", "stopped")]

    run(scenario())


# Lanes


def test_lanes_are_known_before_they_come() -> None:
    async def scenario() -> None:
        broker = Broker(["lane-0"])
        assert (await broker.state())[0] == [LaneState(lane="lane-0", state="starting")]
        await broker.lane_started("lane-0", 41)
        await broker.lane_started("lane-0", 42)
        await broker.lane_ready("lane-0", 4, "4 slots: measured")
        ready = LaneState(lane="lane-0", state="ready", starts=2, pid=42, slots=4, message="4 slots: measured")
        assert (await broker.state())[0] == [ready]

    run(scenario())


def test_the_first_lane_that_is_ready_says_how_many_trials_are_planned() -> None:
    async def scenario() -> None:
        broker = Broker(["lane-0", "lane-1", "lane-2"])
        planned = asyncio.create_task(broker.planned())
        await settle()
        assert not planned.done()
        await broker.lane_started("lane-0", 1)
        await broker.lane_ready("lane-0", 4)
        assert await planned == 12
        await broker.lane_started("lane-1", 2)
        await broker.lane_ready("lane-1", 2)
        await broker.lane_ended("lane-2", "no memory")
        assert await broker.planned() == 6

    run(scenario())


def test_a_lane_that_failed_plans_nothing() -> None:
    async def scenario() -> None:
        broker = Broker(["lane-0", "lane-1"])
        await broker.lane_ready("lane-0", 4)
        await broker.lane_ended("lane-0", "no memory")
        planned = asyncio.create_task(broker.planned())
        await settle()
        assert not planned.done()
        await broker.lane_ready("lane-1", 2)
        assert await planned == 2

    run(scenario())


def test_nothing_is_planned_when_no_lane_can_run() -> None:
    async def scenario() -> None:
        broker = Broker(["lane-0"])
        planned = asyncio.create_task(broker.planned())
        await settle()
        await broker.lane_ended("lane-0", "no memory")
        assert await planned == 0

    run(scenario())


def test_progress_is_kept_while_a_trial_is_in_hand() -> None:
    async def scenario() -> None:
        broker = await in_training("a", "b")
        for number, trial in enumerate(("a", "b")):
            await broker.progress(Progress(trial_id=trial, number=number, step=3, train_loss=1.0))
        assert [progress.trial_id for progress in (await broker.state())[1]] == ["a", "b"]
        await broker.finish(end("a", steps=3))
        await broker.release("b", paused=True)
        await verdicts(broker)
        assert (await broker.state())[1] == []

    run(scenario())


# Searches that are taken up again


def test_a_trial_that_an_earlier_run_ended_is_answered_and_not_trained() -> None:
    ended = final_result(end("a", steps=9, eval_loss=0.5))

    async def scenario() -> None:
        first = {"steps": 3, "eval_loss": 0.7}
        broker = await one_lane({"a": Past(attempts=1, results=[first, ended], ended=True), "b": Past(attempts=2)})
        await submitted(broker, "a", "b")
        assert [bare(await broker.next_result("a", index)) for index in (0, 1)] == [first, ended]
        assert [(spec.trial_id, spec.attempt) for spec in await taken(broker)] == [("b", 3)]
        await broker.release("a")
        assert await broker.events(0, 0.0) == []

    run(scenario())


def test_a_trial_that_an_earlier_run_left_is_replayed_to_tune_and_trained_on() -> None:
    known = [{"steps": step, "eval_loss": 1.0} for step in (1, 2)]

    async def scenario() -> None:
        broker = await one_lane({"a": Past(attempts=1, results=known)})
        await submitted(broker, "a")
        assert [(spec.attempt, spec.decided) for spec in await taken(broker)] == [(2, 0)]
        await broker.report([evaluation("a", 2)])  # its checkpoint's
        assert [bare(await broker.next_result("a", index)) for index in (0, 1)] == known
        assert await verdicts(broker) == {}
        asked = await asking(broker, "a", 2)
        assert await verdicts(broker) == {"a": "go_on"}
        assert await broker.events(0, 0.0) == []
        await broker.report([evaluation("a", 3)])
        assert bare(await asked) == {"steps": 3, "eval_loss": 1.0}

    run(scenario())


def test_a_trial_that_an_earlier_run_left_may_be_stopped_before_it_is_trained_on() -> None:
    async def scenario() -> None:
        known = {"steps": 1, "eval_loss": 0.5}
        broker = await one_lane({"a": Past(attempts=1, results=[known])})
        await submitted(broker, "a")
        assert bare(await broker.next_result("a", 0)) == known
        await broker.release("a")
        (event,) = await broker.events(0, 0.0)
        assert isinstance(event, TrialEnded)
        assert (event.status, event.attempt, event.metrics) == ("stopped", 1, known)

    run(scenario())


def test_events_that_are_there_are_returned_without_waiting() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        assert await broker.events(0, 0.0) == []
        event = TrialStarted(trial_id="a", search_id="s", number=0, params=PARAMS)
        await broker.started(event)
        assert await broker.events(0, 0.0) == [event]
        later = asyncio.create_task(broker.events(1, 5.0))
        await settle()
        await broker.started(event)
        assert await later == [event]

    run(scenario())


@pytest.mark.parametrize("status", ["completed", "stopped", "failed"])
def test_a_failed_trial_has_no_metric_for_anyone_to_mistake(status: str) -> None:
    result = final_result(end("a", status, steps=3, eval_loss=0.5))
    assert result["outcome"] == status and result["done"] is True
    assert ("eval_loss" in result) == (status != "failed")


def test_a_result_brings_all_that_were_reported_with_it() -> None:
    async def scenario() -> None:
        broker = await in_training("a", "b", "c")
        waiting = [await asking(broker, trial, 0) for trial in ("a", "b")]
        await broker.report([evaluation("a", 2, 0.5), evaluation("b", 2, 0.25)])
        assert [((await result) or {})[RUNG] for result in waiting] == [[0.5, 0.25], [0.5, 0.25]]
        await broker.report([evaluation("c", 2, 0.75)])
        assert (await broker.next_result("c", 0) or {})[RUNG] == [0.5, 0.25, 0.75]
        await broker.report([evaluation("a", 4, 0.125)])
        assert (await broker.next_result("a", 1) or {})[RUNG] == [0.125]

    asyncio.run(scenario())


def test_a_rung_knows_what_an_earlier_run_saw_of_it() -> None:
    async def scenario() -> None:
        past = {"old": Past(attempts=1, results=[{"steps": 2, "eval_loss": 0.5, "done": True}], ended=True)}
        broker = await one_lane(past)
        await submitted(broker, "a")
        await taken(broker)
        await broker.report([evaluation("a", 2, 0.25)])
        assert (await broker.next_result("a", 0) or {})[RUNG] == [0.5, 0.25]

    asyncio.run(scenario())
