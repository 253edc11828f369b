"""Whole searches at random, without Ray: trials are stopped, paused and restored, and lanes die at every moment."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from trial_events import evaluation, start

from rankloom.cluster.broker import Broker
from rankloom.training.exchange import TrialSpec
from rankloom_registry import Event, TrialEnded, TrialReported, TrialStarted

STEPS = 4
SEARCHES = 25  # a test


class DiedError(Exception):
    """A lane's process is dead."""


class Lane:
    """A lane whose processes may die wherever they talk to the broker; what they wrote to the disk stays."""

    def __init__(self, name: str, slots: int, broker: Broker, random: Random, disk: dict[str, int]) -> None:
        self._name, self._slots, self._broker, self._random, self._disk = name, slots, broker, random, disk
        self._deaths = random.randint(0, 5)  # to come

    async def run(self, *, may_be_lost: bool) -> None:
        pid = 0
        while True:
            pid += 1
            await self._broker.lane_started(self._name, pid)
            await self._broker.lane_ready(self._name, self._slots)
            try:
                return await self._train()
            except DiedError:
                await moments(self._random.randint(3, 8))
                if may_be_lost and self._random.random() < 0.2:
                    return await self._broker.lane_ended(self._name, "its node is gone")

    async def _train(self) -> None:
        hands: dict[str, TrialSpec] = {}
        steps: dict[str, int] = {}
        waiting: set[str] = set()
        while True:
            going = hands.keys() - waiting
            asking = asyncio.create_task(
                self._broker.orders(self._name, self._slots - len(hands), 0 if going else None)
            )
            await self._survive()  # the broker has the question all the same
            orders = await asking
            if orders.over:
                return
            for trial, verdict in orders.verdicts.items():
                waiting.discard(trial)
                if verdict == "stop":
                    await self._end(hands[trial], "stopped", steps[trial])
                if verdict != "go_on":
                    del hands[trial]
            for spec in orders.trials:
                await self._survive()
                await self._broker.started(start(spec))
                hands[spec.trial_id], steps[spec.trial_id] = spec, self._disk.get(spec.trial_id, 0)
                if steps[spec.trial_id] > spec.decided:
                    waiting.add(spec.trial_id)
                    await self._broker.report([evaluation(spec.trial_id, steps[spec.trial_id])])
            for trial in sorted(hands.keys() - waiting):
                steps[trial] += 1
                if steps[trial] == STEPS:
                    await self._end(hands.pop(trial), "completed", STEPS)
                else:
                    self._disk[trial] = steps[trial]
                    waiting.add(trial)
                    await self._survive()
                    await self._broker.report([evaluation(trial, steps[trial])])

    async def _end(self, spec: TrialSpec, status: str, step: int) -> None:
        await self._survive()
        metrics = evaluation(spec.trial_id, step).metrics
        await self._broker.finish(
            TrialEnded(trial_id=spec.trial_id, status=status, metrics=metrics, attempt=spec.attempt)
        )
        self._disk.pop(spec.trial_id, None)

    async def _survive(self) -> None:
        if self._deaths and self._random.random() < 0.05:
            self._deaths -= 1
            await moments(8)
            raise DiedError


async def tune(broker: Broker, trial: str, number: int, random: Random) -> None:
    """Tune lets a trial go on, stops it, or pauses it and comes back, with its checkpoint or without."""
    index, lease, restored = 0, None, None
    await broker.name(f"tune-{trial}", trial)
    while True:
        if lease is None:
            lease = await broker.submit(trial, number, {}, restored=restored, seen=index)
        result: dict[str, Any] | None = await broker.next_result(trial, index)
        assert result is not None, "the search is closed"
        index += 1
        chance = random.random()
        if result.get("done") or chance < 0.1:
            return await broker.dismiss(f"tune-{trial}")
        if chance < 0.3:
            await broker.release(trial, lease, paused=True)
            await moments(random.randint(0, 30))
            lease, restored = None, result["steps"] if random.random() < 0.6 else None
            if restored is not None:
                await broker.recall(trial)
                index = 0


async def somebody(broker: Broker, trials: int, random: Random) -> None:
    for _ in range(random.randint(0, 3)):
        await moments(random.randint(5, 60))
        await broker.stop(random.randrange(trials), "ann")


async def searched(random: Random) -> list[Event]:
    """Run a search until every trial has ended; what happened."""
    lanes, trials, slots = random.randint(1, 3), random.randint(1, 8), random.randint(1, 3)
    names = [f"lane-{number}" for number in range(lanes)]
    broker, disk = Broker(names, takes_turns=random.random() < 0.3), dict[str, int]()
    async with asyncio.TaskGroup() as group:
        for name in names:  # the first stays
            group.create_task(Lane(name, slots, broker, random, disk).run(may_be_lost=name != "lane-0"))
        tunes = [group.create_task(tune(broker, f"trial-{number}", number, random)) for number in range(trials)]
        await asyncio.gather(*tunes, somebody(broker, trials, random))
        assert await broker.drained(10.0)
        await broker.close()
    return await broker.events(0, 0.0)


async def moments(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_a_trial_that_began_ends_once(seed: int) -> None:
    random = Random(seed)
    for _ in range(SEARCHES):
        begun, ended = set[str](), set[str]()
        for event in asyncio.run(asyncio.wait_for(searched(random), 20)):
            assert isinstance(event, TrialStarted | TrialReported | TrialEnded)
            assert event.trial_id not in ended
            if isinstance(event, TrialStarted):
                begun.add(event.trial_id)
            assert event.trial_id in begun
            if isinstance(event, TrialEnded):
                ended.add(event.trial_id)
        assert begun == ended
