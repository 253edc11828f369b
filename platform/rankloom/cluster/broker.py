"""Who trains what: the one meeting place of Ray Tune's trials and the lanes.

Tune submits a trial and asks for its next result; a lane takes a trial and reports. Neither knows the other, so a
trial outlives the lane that trained it and a lane outlives every trial.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankloom.training.exchange import TrialSpec
from rankloom_registry import Event, TrialEnded, TrialReported, TrialStarted

MAX_ATTEMPTS = 3


@dataclass(slots=True)
class _Flight:
    """A trial between its submission and its end."""

    spec: TrialSpec
    results: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0  # results that Tune has asked for
    released: bool = False  # Tune no longer wants it
    ended: bool = False
    lane: str | None = None
    deaths: int = 0  # of processes that trained it


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the trial on a lane is; seen by the terminal only."""

    trial_id: str
    number: int
    step: int
    train_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """What is known of a lane."""

    lane: str
    state: str = "starting"  # then 'loading', 'ready', and 'done' or 'failed'
    message: str = ""
    starts: int = 0
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What an earlier run of the search saw of a trial.

    Attributes:
        attempts: How often it was begun.
        results: If it ended, its results, the last of which is a `final_result`: submitted again, it is answered with
            these, so that it is not trained again and a scheduler learns what it knew.
    """

    attempts: int
    results: Sequence[dict[str, Any]] = ()


class Broker:
    """An asyncio object, run as a Ray actor; every method returns at once or waits without a thread."""

    def __init__(self, lanes: Iterable[str], past: Mapping[str, Past] | None = None) -> None:
        """Start a search's broker.

        Args:
            lanes: Names of the lanes that will come.
            past: What an earlier run of the search saw, by trial_id.
        """
        self._past = dict(past or {})
        self._flights: dict[str, _Flight] = {}
        self._queue: deque[str] = deque()
        self._events: list[Event] = []
        self._progress: dict[str, Progress] = {}
        self._lanes = {lane: LaneState(lane=lane) for lane in lanes}
        self._closed = False
        self._changed = asyncio.Condition()

    # For Ray Tune

    async def submit(self, trial_id: str, number: int, params: dict[str, Any]) -> None:
        """Queue a trial; one that is known already, because its Tune actor died, goes on from where it is."""
        async with self._changed:
            flight = self._flights.get(trial_id)
            if flight is None:
                past = self._past.get(trial_id, Past(attempts=0))
                spec = TrialSpec(trial_id=trial_id, number=number, params=params, attempt=past.attempts + 1)
                flight = _Flight(spec, results=list(past.results), ended=bool(past.results))
                self._flights[trial_id] = flight
            flight.released = False
            if not flight.ended and flight.lane is None and trial_id not in self._queue:
                self._queue.append(trial_id)
            self._changed.notify_all()

    async def next_result(self, trial_id: str, index: int) -> dict[str, Any] | None:
        """Wait for a trial's result number `index`; None when the search is closed first."""
        flight = self._flights[trial_id]
        async with self._changed:
            flight.asked = max(flight.asked, index + 1)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: len(flight.results) > index or self._closed)
            return flight.results[index] if len(flight.results) > index else None

    async def release(self, trial_id: str) -> None:
        """Tell that Tune is done with a trial: stopped early, or ended."""
        async with self._changed:
            flight = self._flights.get(trial_id)
            if flight is None:
                return
            flight.released = True
            if trial_id in self._queue:
                self._queue.remove(trial_id)
            self._changed.notify_all()

    # For lanes

    async def lane_started(self, lane: str, pid: int) -> None:
        """Tell that a lane's process is up; trials that its predecessor had in hand go back to the queue."""
        async with self._changed:
            self._lanes[lane] = LaneState(lane=lane, state="loading", starts=self._lanes[lane].starts + 1, pid=pid)
            self._take_back(lane)
            self._changed.notify_all()

    async def lane_ready(self, lane: str) -> None:
        """Tell that a lane's base is loaded."""
        await self._set_lane(lane, "ready")

    async def lane_ended(self, lane: str, message: str = "") -> None:
        """Tell that a lane is over; a message means that it failed, and when no lane is left the search closes."""
        await self._set_lane(lane, "failed" if message else "done", message)
        async with self._changed:
            self._take_back(lane)
            if all(state.state in ("failed", "done") for state in self._lanes.values()):
                self._closed = True
            self._changed.notify_all()

    async def take(self, lane: str) -> TrialSpec | None:
        """Wait for the next trial for a lane; None when there will be no more."""
        async with self._changed:
            starts = self._lanes[lane].starts
            await self._changed.wait_for(lambda: self._queue or self._closed or self._lanes[lane].starts != starts)
            # A process that died while it waited must not take a trial from the one that came after it.
            if self._closed or self._lanes[lane].starts != starts:
                return None
            flight = self._flights[self._queue.popleft()]
            flight.lane = lane
            return flight.spec

    async def started(self, event: TrialStarted) -> None:
        """Record that a lane began a trial."""
        await self._record(event)

    async def progress(self, lane: str, progress: Progress) -> None:
        """Keep where a lane is."""
        self._progress[lane] = progress

    async def report(self, event: TrialReported) -> bool | None:
        """Pass an evaluation on to Tune and wait for its decision: True to go on, False to stop, None if closed first.

        A retried trial repeats the evaluations of its first attempt; those that Tune has seen are answered at once.
        """
        flight = self._flights[event.trial_id]
        seen = next((i for i, result in enumerate(flight.results) if result["steps"] == event.step), None)
        if seen is None:
            await self._record(event)
        async with self._changed:
            if seen is None:
                seen = len(flight.results)
                flight.results.append(dict(event.metrics))
                self._changed.notify_all()
            await self._changed.wait_for(lambda: flight.asked > seen + 1 or flight.released or self._closed)
            return None if self._closed else not flight.released

    async def finish(self, event: TrialEnded, before: Sequence[TrialReported] = ()) -> None:
        """Record how a trial ended, and reports that nobody decides about `before` it, and let Tune know."""
        async with self._changed:
            if self._closed:
                return
            self._events += [*before, event]
            self._end(event)
            self._changed.notify_all()

    # For the driver

    async def events(self, start: int, timeout_s: float) -> list[Event]:
        """Return the events from number `start` on, waiting at most `timeout_s` for one."""
        async with self._changed:
            await self._wait(lambda: len(self._events) > start, timeout_s)
            return self._events[start:]

    async def state(self) -> tuple[list[LaneState], list[Progress]]:
        """Return the lanes and where each is."""
        return list(self._lanes.values()), list(self._progress.values())

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no lane has a trial in hand, or the search is closed; False if that takes too long."""
        async with self._changed:
            return await self._wait(
                lambda: self._closed or all(f.ended or not f.lane for f in self._flights.values()), timeout_s
            )

    async def close(self) -> None:
        """End the search: whoever waits is let go, and what lanes tell from now on is not recorded."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Inside

    async def _wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        # Not asyncio.wait_for alone: with a timeout of 0 it gives up on a condition that holds already.
        if not ready():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(ready), timeout_s)
        return ready()

    async def _record(self, event: Event) -> None:
        async with self._changed:
            # What comes in after the close was cut short, and is trained again when the search is resumed.
            if not self._closed:
                self._events.append(event)
                self._changed.notify_all()

    async def _set_lane(self, lane: str, state: str, message: str = "") -> None:
        async with self._changed:
            known = self._lanes[lane]
            if known.state != "failed":  # the first reason is the one to tell
                self._lanes[lane] = dataclasses.replace(known, state=state, message=message)
            self._progress.pop(lane, None)
            self._changed.notify_all()

    def _take_back(self, lane: str) -> None:
        """Put the trials that a lane had in hand back into the queue."""
        for flight in self._flights.values():
            if flight.lane != lane or flight.ended:
                continue
            spec, flight.lane = flight.spec, None
            flight.deaths += 1
            if flight.released:
                self._finish_in_broker(flight, "stopped", "its lane died after it was stopped")
            elif flight.deaths >= MAX_ATTEMPTS:
                self._finish_in_broker(flight, "failed", f"its lane's process died {flight.deaths} times in this trial")
            else:
                flight.spec = dataclasses.replace(spec, attempt=spec.attempt + 1)
                self._queue.appendleft(spec.trial_id)

    def _finish_in_broker(self, flight: _Flight, status: str, message: str) -> None:
        event = TrialEnded(trial_id=flight.spec.trial_id, status=status, message=message, attempt=flight.spec.attempt)
        self._events.append(event)
        self._end(event)

    def _end(self, event: TrialEnded) -> None:
        flight = self._flights[event.trial_id]
        flight.ended = True
        flight.results.append(final_result(event))


def final_result(event: TrialEnded) -> dict[str, Any]:
    """Return the last result that Tune sees of a trial.

    A failed trial has no metric, so that no scheduler and no study takes a number for one; `outcome` says what it was.
    """
    metrics = dict(event.metrics) if event.status != "failed" else {}
    return {**metrics, "done": True, "outcome": event.status}
