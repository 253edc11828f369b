"""The broker as the plain asyncio object it is: who waits for what, and who is woken."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from trial_events import bare, end, evaluation, start

from rankloom.cluster.broker import Broker
from rankloom.cluster.flight import RUNG
from rankloom.training.exchange import Orders, TrialSpec, Verdict
from rankloom_registry import Event, TrialEnded, TrialReported, TrialStarted

PARAMS = {"r": 8}
ALL = 100  # slots enough for everything that is queued
OVER = Orders(over=True)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def one_lane() -> Broker:
    broker = Broker(["lane-0"])
    await broker.lane_started("lane-0", 1)
    await broker.lane_ready("lane-0")
    return broker


async def submitted(broker: Broker, *trials: str) -> None:
    for number, trial in enumerate(trials):
        await broker.submit(trial, number, PARAMS)


async def taken(broker: Broker, free: int = ALL, lane: str = "lane-0") -> list[TrialSpec]:
    """The trials that a lane takes and begins."""
    trials = (await broker.orders(lane, free, 0)).trials
    for spec in trials:
        await broker.started(start(spec))
    return list(trials)


async def verdicts(broker: Broker) -> dict[str, Verdict]:
    return dict((await broker.orders("lane-0", 0, 0)).verdicts)


async def in_training(*trials: str) -> Broker:
    """A broker whose lane has begun the trials."""
    broker = await one_lane()
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


async def told(broker: Broker) -> list[Event]:
    """What happened, but for what began."""
    return [event for event in await broker.events(0, 0.0) if not isinstance(event, TrialStarted)]


# Who gets which trial


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
        kinds = [(type(event), getattr(event, "step", None)) for event in await told(broker)]
        assert kinds == [(TrialReported, 1), (TrialReported, 2), (TrialEnded, None)]

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
        assert not [event for event in await told(broker) if isinstance(event, TrialEnded)]

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
        (event,) = (await told(broker))[1:]
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
        assert len(await told(broker)) == 2

    run(scenario())


# Lanes that die


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


def test_a_request_of_a_lane_that_is_over_takes_no_trial_from_the_others() -> None:
    async def scenario() -> None:
        broker = Broker(["lane-0", "lane-1"])
        await broker.lane_started("lane-0", 1)
        dead = asyncio.create_task(broker.orders("lane-0", 1, None))
        await settle()
        await broker.lane_ended("lane-0", "its node is gone")
        await submitted(broker, "a")
        assert [spec.trial_id for spec in await taken(broker, lane="lane-1")] == ["a"]
        assert await dead == await broker.orders("lane-0", 1, None) == OVER

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
        ends = [event for event in await told(broker) if isinstance(event, TrialEnded)]
        assert [(event.trial_id, event.status) for event in ends] == [("paused", "stopped")]

    run(scenario())


# Lanes


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


# Who is woken


def test_events_that_are_there_are_returned_without_waiting() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await submitted(broker, "a")
        assert await broker.events(0, 0.0) == []
        event = TrialStarted(trial_id="a", search_id="s", number=0, params=PARAMS)
        await broker.started(event)
        assert await broker.events(0, 0.0) == [event]
        later = asyncio.create_task(broker.events(1, 5.0))
        await settle()
        await broker.started(event)
        assert await later == [event]

    run(scenario())


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


# Stopped by somebody other than Tune


def test_its_lane_ends_it_and_tune_hears_of_it_while_it_waits() -> None:
    async def scenario() -> None:
        broker = await in_training("a", "b")
        await broker.submit("c", 2, PARAMS)
        hears = asyncio.create_task(broker.next_result("b", 0))
        waits = asyncio.create_task(broker.orders("lane-0", 0, None))
        assert await broker.stop(1, "ann", "it learns nothing") == ""
        assert (await waits).verdicts == {"b": "stop"}  # at once
        assert await broker.stop(1, "bob", "me too") == ""  # a second time changes nothing
        assert not (await broker.orders("lane-0", 0, 0)).verdicts
        await broker.finish(TrialEnded(trial_id="b", status="stopped", metrics={"steps": 1}, who="root"))
        assert await hears == {"steps": 1} | {"done": True, "outcome": "stopped"}
        (end,) = (event for event in await told(broker) if isinstance(event, TrialEnded))
        assert (end.who, end.why, end.message) == ("ann", "it learns nothing", "stopped by ann: it learns nothing")
        assert end.event_id == "trial_ended:b:1:stopped"
        assert [spec.trial_id for spec in (await broker.orders("lane-0", 1, 0)).trials] == ["c"]
        await broker.release("b")  # Tune says that it heard
        assert await told(broker) == [end]

    run(scenario())
