"""Who trains what: the one meeting place of Ray Tune's trials and the lanes.

Tune submits a trial and asks for its next result; a lane takes a trial and reports. Neither knows the other, so a
trial outlives the lane that trained it and a lane outlives every trial.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from rankloom.cluster.flight import LaneState, Past, Progress
from rankloom.cluster.flights import Flights
from rankloom.cluster.lanes import Lanes
from rankloom.training.exchange import Orders
from rankloom_registry import Event, TrialEnded, TrialReported, TrialStarted


class Broker:
    """An asyncio object, run as a Ray actor; every method returns at once or waits without a thread.

    Here is who waits for what. What becomes of a trial is the matter of `Flights`, how a lane is that of `Lanes`.
    """

    def __init__(
        self,
        lanes: Iterable[str],
        past: Mapping[str, Past] | None = None,
        *,
        metric: str = "eval_loss",
        takes_turns: bool = False,
    ) -> None:
        """Start a search's broker.

        Args:
            lanes: Names of the lanes that will come.
            past: What an earlier run of the search saw, by trial_id.
            metric: What trials are compared by.
            takes_turns: Whether a trial that was evaluated gives its slot to one that waits for a slot: a population
                that is larger than the slots then advances together.
        """
        self._flights = Flights(past, metric=metric, takes_turns=takes_turns)
        self._lanes = Lanes(lanes)
        self._names: dict[str, str] = {}
        self._changed = asyncio.Condition()

    # For Ray Tune

    async def name(self, tune_id: str, trial_id: str) -> str:
        """Return the name of Tune's trial: the first it was given.

        Population-based training copies whole configurations, and with them the number that another trial has.
        """
        return self._names.setdefault(tune_id, trial_id)

    async def submit(
        self, trial_id: str, number: int, params: dict[str, Any], *, restored: int | None = None, seen: int = 0
    ) -> int:
        """Queue a trial; one that is known already goes on from where it is.

        Args:
            trial_id: Its id.
            number: Its number in the search.
            params: Its resolved configuration.
            restored: The step of the checkpoint that Tune gave it, its own or another trial's; its results begin anew.
            seen: Results after which Tune let it go on.

        Returns:
            The lease to release it with.
        """
        async with self._change() as flights:
            if restored is not None:
                await self._recall(trial_id)
            return flights.submit(trial_id, number, params, restored=restored, seen=seen)

    async def recall(self, trial_id: str) -> None:
        """Take a trial from its lane or the queue, if either has it: nobody writes its state from then on."""
        async with self._changed:
            await self._recall(trial_id)

    async def next_result(self, trial_id: str, index: int) -> dict[str, Any] | None:
        """Wait for a trial's result number `index`, with its rung; None when the search is closed first."""
        async with self._changed:
            flight = self._flights.ask(trial_id, index)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: len(flight.results) > index or self._flights.closed)
            return self._flights.result(flight, index)

    async def release(self, trial_id: str, lease: int | None = None, *, paused: bool = False) -> None:
        """Tell that Tune is done with a trial: stopped early, ended, or paused until it is submitted again.

        Args:
            trial_id: Its id.
            lease: What its submission returned: an actor that Tune keeps for later may speak long after the trial went
                on in another. None speaks for whoever has it.
            paused: Whether it will be submitted again.
        """
        async with self._change() as flights:
            flights.release(trial_id, lease, paused=paused)

    async def dismiss(self, tune_id: str) -> None:
        """Tell that Tune's trial is over; its actor cannot know."""
        if tune_id in self._names:
            await self.release(self._names[tune_id])

    # For lanes

    async def lane_started(self, lane: str, pid: int) -> None:
        """Tell that a lane's process is up; trials that its predecessor had in hand go back to the queue."""
        async with self._change() as flights:
            self._lanes.started(lane, pid)
            flights.take_back(lane)

    async def lane_ready(self, lane: str, slots: int = 1, message: str = "") -> None:
        """Tell that a lane's base is loaded, how many trials it trains at once, and how."""
        async with self._change():
            self._lanes.ready(lane, slots, message)

    async def lane_ended(self, lane: str, message: str = "") -> None:
        """Tell that a lane is over; a message means that it failed, and when no lane is left the search closes."""
        async with self._change() as flights:
            self._lanes.ended(lane, message)
            flights.take_back(lane)
            flights.closed = flights.closed or self._lanes.all_over()

    async def orders(self, lane: str, free: int, wait_s: float | None) -> Orders:
        """Return what a lane is to do, as soon as there is something; see `Exchange.orders`."""
        async with self._changed:
            starts = self._lanes.starts(lane)

            def over() -> bool:
                # A process that died while it waited must not take a trial from those that are still there.
                return self._flights.closed or self._lanes.is_over(lane) or self._lanes.starts(lane) != starts

            await self._wait(lambda: over() or self._flights.waiting_for(lane, free), wait_s)
            if over():
                return Orders(over=True)
            orders = self._flights.orders(lane, free)
            self._changed.notify_all()
            return orders

    async def started(self, event: TrialStarted) -> None:
        """Record that a lane began a trial."""
        async with self._change() as flights:
            flights.started(event)

    async def progress(self, progress: Progress) -> None:
        """Keep where a trial is."""
        self._flights.progress[progress.trial_id] = progress

    async def report(self, events: Sequence[TrialReported]) -> None:
        """Pass evaluations on to Tune, none before all are known; verdicts come with later orders."""
        async with self._change() as flights:
            flights.report(events)

    async def finish(self, event: TrialEnded, before: Sequence[TrialReported] = ()) -> None:
        """Record how a trial ended, and reports that nobody decides about `before` it, and let Tune know."""
        async with self._change() as flights:
            flights.finish(event, before)

    # For the driver

    async def events(self, start: int, timeout_s: float) -> list[Event]:
        """Return the events from number `start` on, waiting at most `timeout_s` for one."""
        async with self._changed:
            await self._wait(lambda: len(self._flights.events) > start, timeout_s)
            return self._flights.events[start:]

    async def state(self) -> tuple[list[LaneState], list[Progress]]:
        """Return the lanes and where each is."""
        return self._lanes.states(), list(self._flights.progress.values())

    async def planned(self) -> int:
        """Wait until a lane knows how many trials it trains at once; all lanes' slots, or 0 if the search is closed.

        Lanes that are not ready yet are taken to have as many as the first one that is: they hold the same base on the
        same kind of device, and a trial too many only waits in the queue.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._flights.closed or self._lanes.planned() > 0)
            return 0 if self._flights.closed else self._lanes.planned()

    async def drained(self, timeout_s: float) -> bool:
        """Stop what Tune left, as at the end of a time budget, and wait until no lane has a trial in hand.

        Returns:
            Whether that was so, or the search is closed, within `timeout_s`.
        """
        async with self._changed:
            self._flights.release_all()
            self._changed.notify_all()
            return await self._wait(lambda: self._flights.closed or not self._flights.any_in_hand(), timeout_s)

    async def stop(self, number: int, who: str, why: str = "") -> str:
        """Stop a trial on somebody's behalf: its lane ends it, and Tune hears of it as the trial's own end.

        Args:
            number: Its number in the search.
            who: Who asks.
            why: Why.

        Returns:
            Why it cannot be stopped; empty if it is over, or will be as soon as its lane has saved it.
        """
        async with self._change() as flights:
            return flights.stop(number, who, why)

    async def close(self) -> None:
        """End the search: whoever waits is let go, and what lanes tell from now on is not recorded."""
        async with self._change() as flights:
            flights.closed = True

    # Inside

    @contextlib.asynccontextmanager
    async def _change(self) -> AsyncIterator[Flights]:
        """Hold the state while it is changed, and then let everybody who waits look at it."""
        async with self._changed:
            yield self._flights
            self._changed.notify_all()

    async def _wait(self, ready: Callable[[], bool], timeout_s: float | None) -> bool:
        # Not asyncio.wait_for alone: with a timeout of 0 it gives up on a condition that holds already.
        if not ready():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(ready), timeout_s)
        return ready()

    async def _recall(self, trial_id: str) -> None:
        self._flights.release(trial_id, paused=True)
        self._changed.notify_all()
        await self._changed.wait_for(lambda: self._flights.closed or not self._flights.in_hand(trial_id))
