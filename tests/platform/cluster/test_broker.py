"""The broker as the plain asyncio object it is: who gets which trial, and who hears what of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from rankloom.cluster.broker import MAX_ATTEMPTS, Broker, LaneState, Past, final_result
from rankloom.training.exchange import TrialSpec
from rankloom_registry import TrialEnded, TrialReported, TrialStarted

PARAMS = {"r": 8}


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def one_lane(past: dict[str, Past] | None = None) -> Broker:
    broker = Broker(["lane-0"], past)
    await broker.lane_started("lane-0", 1)
    await broker.lane_ready("lane-0")
    return broker


async def taken(broker: Broker, lane: str = "lane-0") -> TrialSpec:
    spec = await broker.take(lane)
    assert spec is not None
    return spec


def evaluation(trial: str, step: int, loss: float = 1.0) -> TrialReported:
    return TrialReported(trial_id=trial, step=step, metrics={"steps": step, "eval_loss": loss})


def end(trial: str, status: str = "completed", **metrics: float) -> TrialEnded:
    return TrialEnded(trial_id=trial, status=status, metrics=metrics)


def test_trials_are_taken_in_the_order_in_which_they_were_submitted() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        for number, trial in enumerate(["b", "a", "c"]):
            await broker.submit(trial, number, {"r": number})
        specs = [await taken(broker) for _ in range(3)]
        assert [(spec.trial_id, spec.number, spec.params, spec.attempt) for spec in specs] == [
            ("b", 0, {"r": 0}, 1),
            ("a", 1, {"r": 1}, 1),
            ("c", 2, {"r": 2}, 1),
        ]

    run(scenario())


def test_a_lane_waits_for_tunes_decision_and_goes_on() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit("a", 0, PARAMS)
        await taken(broker)
        report = asyncio.create_task(broker.report(evaluation("a", 1, 0.5)))
        assert await broker.next_result("a", 0) == {"steps": 1, "eval_loss": 0.5}
        await settle()
        assert not report.done()
        asked = asyncio.create_task(broker.next_result("a", 1))
        assert await report is True
        await broker.finish(end("a", steps=2, eval_loss=0.25), [evaluation("a", 2, 0.25)])
        assert await asked == {"steps": 2, "eval_loss": 0.25, "done": True, "outcome": "completed"}
        kinds = [(type(event), getattr(event, "step", None)) for event in await broker.events(0, 0.0)]
        assert kinds == [(TrialReported, 1), (TrialReported, 2), (TrialEnded, None)]

    run(scenario())


def test_a_released_trial_is_stopped_at_its_report() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit("a", 0, PARAMS)
        await taken(broker)
        report = asyncio.create_task(broker.report(evaluation("a", 1)))
        await broker.next_result("a", 0)
        await broker.release("a")
        assert await report is False

    run(scenario())


def test_a_trial_released_before_a_lane_took_it_is_not_trained_until_it_is_submitted_again() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit("a", 0, PARAMS)
        await broker.submit("b", 1, PARAMS)
        await broker.release("a")
        assert (await taken(broker)).trial_id == "b"
        waiting = asyncio.create_task(broker.take("lane-0"))
        await settle()
        assert not waiting.done()
        await broker.submit("a", 0, PARAMS)
        spec = await waiting
        assert spec is not None and spec.trial_id == "a"

    run(scenario())


def test_a_trial_whose_tune_actor_died_is_replayed_to_the_next_and_goes_on() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit("a", 0, PARAMS)
        await taken(broker)
        report = asyncio.create_task(broker.report(evaluation("a", 1, 0.5)))
        await broker.next_result("a", 0)
        await broker.submit("a", 0, PARAMS)
        assert await broker.next_result("a", 0) == {"steps": 1, "eval_loss": 0.5}
        await settle()
        assert not report.done()
        asked = asyncio.create_task(broker.next_result("a", 1))
        assert await report is True
        asked.cancel()

    run(scenario())


def test_a_restarted_lane_trains_its_trial_again_and_decided_evaluations_are_answered_at_once() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit("a", 0, PARAMS)
        await broker.submit("b", 1, PARAMS)
        await taken(broker)
        first = asyncio.create_task(broker.report(evaluation("a", 1)))
        await broker.next_result("a", 0)
        asked = asyncio.create_task(broker.next_result("a", 1))
        assert await first is True
        await broker.lane_started("lane-0", 2)
        spec = await taken(broker)
        assert (spec.trial_id, spec.number, spec.attempt) == ("a", 0, 2)
        assert await broker.report(evaluation("a", 1)) is True
        assert len(await broker.events(0, 0.0)) == 1
        second = asyncio.create_task(broker.report(evaluation("a", 2)))
        assert await asked == {"steps": 2, "eval_loss": 1.0}
        second.cancel()

    run(scenario())


def test_a_request_of_a_dead_process_takes_no_trial_from_its_successor() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        dead = asyncio.create_task(broker.take("lane-0"))
        await settle()
        await broker.lane_started("lane-0", 2)
        await broker.submit("a", 0, PARAMS)
        assert (await taken(broker)).trial_id == "a"
        assert await dead is None

    run(scenario())


def test_a_trial_under_which_processes_keep_dying_fails() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit("a", 0, PARAMS)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            assert (await taken(broker)).attempt == attempt
            await broker.lane_started("lane-0", attempt)
        assert await broker.next_result("a", 0) == {"done": True, "outcome": "failed"}
        (event,) = await broker.events(0, 0.0)
        assert isinstance(event, TrialEnded) and event.status == "failed" and f"{MAX_ATTEMPTS} times" in event.message
        await broker.submit("b", 1, PARAMS)
        assert (await taken(broker)).trial_id == "b"

    run(scenario())


def test_a_trial_that_was_stopped_when_its_lane_died_is_not_trained_again() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit("a", 0, PARAMS)
        await taken(broker)
        await broker.release("a")
        await broker.lane_started("lane-0", 2)
        (event,) = await broker.events(0, 0.0)
        assert isinstance(event, TrialEnded) and event.status == "stopped"
        assert await broker.drained(0.0)

    run(scenario())


def test_close_lets_everyone_go_and_records_nothing_more() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit("a", 0, PARAMS)
        await taken(broker)
        report = asyncio.create_task(broker.report(evaluation("a", 1)))
        await broker.next_result("a", 0)
        waiting = [broker.next_result("a", 1), broker.take("lane-0"), broker.drained(5.0)]
        tasks = [asyncio.create_task(coroutine) for coroutine in waiting]
        await settle()
        await broker.release("a")  # as Tune does, on its way out: the trial was cut short all the same
        await broker.close()
        assert await asyncio.gather(*tasks) == [None, None, True]
        before = await broker.events(0, 0.0)
        await broker.started(TrialStarted(trial_id="a", search_id="s", number=0, params=PARAMS, attempt=2))
        await broker.finish(end("a", "stopped", steps=1), [evaluation("a", 1)])
        assert await broker.report(evaluation("a", 2)) is None
        assert await broker.events(0, 0.0) == before
        report.cancel()

    run(scenario())


def test_a_report_that_waits_when_the_search_closes_is_told_that_nobody_decided() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        await broker.submit("a", 0, PARAMS)
        await taken(broker)
        report = asyncio.create_task(broker.report(evaluation("a", 1)))
        await settle()
        await broker.close()
        assert await report is None

    run(scenario())


def test_drained_waits_for_what_lanes_have_in_hand_only() -> None:
    async def scenario() -> None:
        broker = await one_lane()
        assert await broker.drained(0.0)
        await broker.submit("a", 0, PARAMS)
        assert await broker.drained(0.0)
        await taken(broker)
        assert not await broker.drained(0.0)
        drained = asyncio.create_task(broker.drained(5.0))
        await settle()
        await broker.finish(end("a", "stopped", steps=1))
        assert await drained

    run(scenario())


def test_the_search_closes_when_no_lane_is_left_and_not_before() -> None:
    async def scenario() -> None:
        broker = Broker(["lane-0", "lane-1"])
        await broker.submit("a", 0, PARAMS)
        await broker.lane_started("lane-0", 1)
        await taken(broker, "lane-0")
        await broker.lane_ended("lane-0", "no memory")  # before lane-1 is up
        await broker.lane_ended("lane-0")  # its trainer returns: the first reason stays
        await broker.lane_started("lane-1", 2)
        spec = await taken(broker, "lane-1")
        assert (spec.trial_id, spec.attempt) == ("a", 2)
        result = asyncio.create_task(broker.next_result("a", 0))
        await broker.lane_ended("lane-1", "no disk")
        assert await result is None
        lanes, _ = await broker.state()
        assert [(lane.state, lane.message) for lane in lanes] == [("failed", "no memory"), ("failed", "no disk")]
        assert await broker.drained(5.0)

    run(scenario())


def test_lanes_are_known_before_they_come() -> None:
    async def scenario() -> None:
        broker = Broker(["lane-0"])
        assert (await broker.state())[0] == [LaneState(lane="lane-0", state="starting")]
        await broker.lane_started("lane-0", 41)
        await broker.lane_started("lane-0", 42)
        await broker.lane_ready("lane-0")
        assert (await broker.state())[0] == [LaneState(lane="lane-0", state="ready", starts=2, pid=42)]

    run(scenario())


def test_a_trial_that_an_earlier_run_ended_is_answered_and_not_trained() -> None:
    ended = final_result(end("a", steps=9, eval_loss=0.5))

    async def scenario() -> None:
        first = {"steps": 3, "eval_loss": 0.7}
        broker = await one_lane({"a": Past(attempts=1, results=[first, ended]), "b": Past(attempts=2)})
        await broker.submit("a", 0, PARAMS)
        await broker.submit("b", 1, PARAMS)
        assert [await broker.next_result("a", index) for index in (0, 1)] == [first, ended]
        spec = await taken(broker)
        assert (spec.trial_id, spec.attempt) == ("b", 3)
        assert await broker.events(0, 0.0) == []

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
