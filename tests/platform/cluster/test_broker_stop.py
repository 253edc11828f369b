"""A trial is stopped by somebody other than Tune: its lane ends it, and Tune hears of it as the trial's own end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from rankloom.cluster.broker import Broker
from rankloom.cluster.flight import Past
from rankloom_registry import TrialEnded, TrialReported

KNOWN = {"steps": 1, "eval_loss": 0.5}
NOT_IN_TRAINING = "is not in training, so it cannot be stopped; of this search, these are: "


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


async def in_training(slots: int, *trials: str, past: dict[str, Past] | None = None) -> Broker:
    """A broker whose lane has begun as many of the trials as it has slots."""
    broker = Broker(["lane-0"], past)
    await broker.lane_started("lane-0", 1)
    await broker.lane_ready("lane-0", slots)
    for number, trial in enumerate(trials):
        await broker.submit(trial, number, {"r": 8})
    await broker.orders("lane-0", slots, 0)
    return broker


async def reported(broker: Broker, trial: str) -> None:
    await broker.report([TrialReported(trial_id=trial, step=1, metrics=KNOWN)])


async def ends(broker: Broker) -> list[TrialEnded]:
    return [event for event in await broker.events(0, 0.0) if isinstance(event, TrialEnded)]


def test_its_lane_ends_it_and_tune_hears_of_it_while_it_waits() -> None:
    async def scenario() -> None:
        broker = await in_training(2, "a", "b", "c")
        hears = asyncio.create_task(broker.next_result("b", 0))
        waits = asyncio.create_task(broker.orders("lane-0", 0, None))
        assert await broker.stop(1, "ann", "it learns nothing") == ""
        assert (await waits).verdicts == {"b": "stop"}  # at once
        assert await broker.stop(1, "bob", "me too") == ""  # a second time changes nothing
        assert not (await broker.orders("lane-0", 0, 0)).verdicts
        await broker.finish(TrialEnded(trial_id="b", status="stopped", metrics=KNOWN, who="root"))
        assert await hears == KNOWN | {"done": True, "outcome": "stopped"}
        (end,) = await ends(broker)
        assert (end.who, end.why, end.message) == ("ann", "it learns nothing", "stopped by ann: it learns nothing")
        assert end.event_id == "trial_ended:b:1:stopped"
        assert [spec.trial_id for spec in (await broker.orders("lane-0", 1, 0)).trials] == ["c"]
        await broker.release("b")  # Tune says that it heard
        assert await ends(broker) == [end]

    run(scenario())


def test_one_that_ends_by_itself_first_is_nobodys_doing() -> None:
    async def scenario() -> None:
        broker = await in_training(1, "a")
        assert await broker.stop(0, "ann", "too slow") == ""
        await broker.finish(TrialEnded(trial_id="a", status="completed", metrics=KNOWN, who="root"))
        (end,) = await ends(broker)
        assert (end.status, end.who, end.why, end.message) == ("completed", "root", "", "")

    run(scenario())


def test_only_what_is_in_training_can_be_stopped() -> None:
    async def scenario() -> None:
        past = {"a": Past(attempts=1, results=[KNOWN | {"done": True, "outcome": "completed"}], ended=True)}
        broker = await in_training(1, "a", "b", "c", past=past)
        for number in (0, 2, 99):  # ended, not begun, not there
            assert await broker.stop(number, "ann") == f"trial {number} {NOT_IN_TRAINING}1"
        await broker.finish(TrialEnded(trial_id="b", status="completed", metrics=KNOWN))
        assert await broker.stop(1, "ann") == f"trial 1 {NOT_IN_TRAINING}none"
        assert [spec.trial_id for spec in (await broker.orders("lane-0", 1, 0)).trials] == ["c"]
        await broker.close()
        assert "the search is ending" in await broker.stop(2, "ann")

    run(scenario())


def test_one_whose_lane_dies_on_the_way_is_not_trained_again() -> None:
    async def scenario() -> None:
        broker = await in_training(1, "a")
        await reported(broker, "a")
        assert await broker.stop(0, "ann") == ""
        await broker.lane_started("lane-0", 2)
        (end,) = await ends(broker)
        assert (end.status, end.metrics, end.who) == ("stopped", KNOWN, "ann")
        assert end.message == "stopped by ann; its lane died after it was stopped"
        assert not (await broker.orders("lane-0", 1, 0)).trials

    run(scenario())


def test_one_that_waits_to_go_on_ends_with_what_was_measured() -> None:
    async def scenario() -> None:
        broker = await in_training(1, "a")
        await reported(broker, "a")
        await broker.lane_started("lane-0", 2)  # its lane died
        assert await broker.stop(0, "ann") == ""
        (end,) = await ends(broker)
        assert (end.status, end.metrics, end.message) == ("stopped", KNOWN, "stopped by ann")
        assert not (await broker.orders("lane-0", 1, 0)).trials

    run(scenario())


@pytest.mark.parametrize("told", ["while its lane has it", "after its lane let it go"])
def test_one_that_tune_pauses_is_over_when_tune_comes_back_to_it(told: str) -> None:
    async def scenario() -> None:
        broker = await in_training(1, "a")
        await reported(broker, "a")
        lease = 1
        if told == "while its lane has it":
            await broker.stop(0, "ann", "enough")
            await broker.release("a", lease, paused=True)
            assert (await broker.orders("lane-0", 0, 0)).verdicts == {"a": "stop"}
            await broker.finish(TrialEnded(trial_id="a", status="stopped", metrics=KNOWN))
        else:
            await broker.release("a", lease, paused=True)
            assert (await broker.orders("lane-0", 0, 0)).verdicts == {"a": "pause"}
            assert await broker.stop(0, "ann", "enough") == ""
        (end,) = await ends(broker)
        assert (end.status, end.message) == ("stopped", "stopped by ann: enough")
        # It comes back with its checkpoint, and its results begin anew: the first of them is its end.
        await broker.submit("a", 0, {"r": 8}, restored=1)
        assert await broker.next_result("a", 0) == KNOWN | {"done": True, "outcome": "stopped"}
        assert not (await broker.orders("lane-0", 1, 0)).trials
        assert await ends(broker) == [end]

    run(scenario())
