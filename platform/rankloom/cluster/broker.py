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
from typing import Any

from rankloom.cluster.flight import RUNG, Flight, Halt, LaneState, Past, Progress, final_result
from rankloom.training.exchange import Orders, TrialSpec, Verdict
from rankloom_registry import Event, TrialEnded, TrialReported, TrialStarted

MAX_ATTEMPTS = 3
OVER = ("failed", "done")  # states of a lane that trains no more


class Broker:
    """An asyncio object, run as a Ray actor; every method returns at once or waits without a thread."""

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
        self._past = dict(past or {})
        self._metric = metric
        self._takes_turns = takes_turns
        self._flights: dict[str, Flight] = {}
        self._names: dict[str, str] = {}
        self._queue: deque[str] = deque()
        self._events: list[Event] = []
        self._progress: dict[str, Progress] = {}
        self._lanes = {lane: LaneState(lane=lane) for lane in lanes}
        self._in_hand: dict[str, set[str]] = {lane: set() for lane in self._lanes}
        self._closed = False
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
        async with self._changed:
            if restored is not None:
                await self._recall(trial_id)
            flight = self._flights.get(trial_id)
            if flight is None:
                past = self._past.get(trial_id, Past(attempts=0))
                spec = TrialSpec(trial_id=trial_id, number=number, params=params, attempt=past.attempts)
                flight = Flight(spec, results=list(past.results), last=dict((past.results or [{}])[-1]))
                flight.ended = past.ended
            elif restored is not None and flight.halt is not None:  # Tune is yet to hear that it is over
                flight = dataclasses.replace(flight, results=flight.results[-1:])
            elif restored is not None:
                spec = dataclasses.replace(flight.spec, params=params, decided=restored)
                flight = Flight(spec, last=flight.last, lease=flight.lease, deaths=flight.deaths)
            self._flights[trial_id] = flight
            flight.lease += 1
            flight.asked = max(flight.asked, seen + 1)
            flight.released = flight.paused = False
            if not flight.ended and flight.lane is None and trial_id not in self._queue:
                self._queue.append(trial_id)
            self._changed.notify_all()
            return flight.lease

    async def recall(self, trial_id: str) -> None:
        """Take a trial from its lane or the queue, if either has it: nobody writes its state from then on."""
        async with self._changed:
            await self._recall(trial_id)

    async def next_result(self, trial_id: str, index: int) -> dict[str, Any] | None:
        """Wait for a trial's result number `index`, with its rung; None when the search is closed first."""
        flight = self._flights[trial_id]
        async with self._changed:
            flight.asked = max(flight.asked, index + 1)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: len(flight.results) > index or self._closed)
            if len(flight.results) <= index:
                return None
            result = flight.results[index]
            return result if result.get("done") else {**result, RUNG: self._rung(result["steps"])}

    async def release(self, trial_id: str, lease: int | None = None, *, paused: bool = False) -> None:
        """Tell that Tune is done with a trial: stopped early, ended, or paused until it is submitted again.

        Args:
            trial_id: Its id.
            lease: What its submission returned: an actor that Tune keeps for later may speak long after the trial went
                on in another. None speaks for whoever has it.
            paused: Whether it will be submitted again.
        """
        async with self._changed:
            flight = self._flights.get(trial_id)
            if flight is not None and lease in (None, flight.lease):
                self._release(flight, paused=paused)
                self._changed.notify_all()

    async def dismiss(self, tune_id: str) -> None:
        """Tell that Tune's trial is over; its actor cannot know."""
        if tune_id in self._names:
            await self.release(self._names[tune_id])

    # For lanes

    async def lane_started(self, lane: str, pid: int) -> None:
        """Tell that a lane's process is up; trials that its predecessor had in hand go back to the queue."""
        async with self._changed:
            self._lanes[lane] = LaneState(lane=lane, state="loading", starts=self._lanes[lane].starts + 1, pid=pid)
            self._take_back(lane)
            self._changed.notify_all()

    async def lane_ready(self, lane: str, slots: int = 1, message: str = "") -> None:
        """Tell that a lane's base is loaded, how many trials it trains at once, and how."""
        await self._set_lane(lane, "ready", message, slots)

    async def lane_ended(self, lane: str, message: str = "") -> None:
        """Tell that a lane is over; a message means that it failed, and when no lane is left the search closes."""
        await self._set_lane(lane, "failed" if message else "done", message)
        async with self._changed:
            self._take_back(lane)
            if all(state.state in OVER for state in self._lanes.values()):
                self._closed = True
            self._changed.notify_all()

    async def orders(self, lane: str, free: int, wait_s: float | None) -> Orders:
        """Return what a lane is to do, as soon as there is something; see `Exchange.orders`."""
        async with self._changed:
            starts = self._lanes[lane].starts

            def over() -> bool:
                # A process that died while it waited must not take a trial from the one that came after it.
                return self._closed or self._lanes[lane].starts != starts

            def ready() -> bool:
                hand = (self._flights[trial_id] for trial_id in self._in_hand[lane])
                return over() or bool(free and self._queue) or any(flight.verdict for flight in hand)

            await self._wait(ready, wait_s)
            if over():
                return Orders(over=True)
            verdicts = {trial_id: self._tell(self._flights[trial_id]) for trial_id in sorted(self._in_hand[lane])}
            trials: list[TrialSpec] = []
            while len(trials) < free and self._queue:
                flight = self._flights[self._queue.popleft()]
                flight.lane = lane
                flight.spec = dataclasses.replace(flight.spec, attempt=flight.spec.attempt + 1, decided=flight.decided)
                self._in_hand[lane].add(flight.spec.trial_id)
                trials.append(flight.spec)
            self._changed.notify_all()
            return Orders(trials=tuple(trials), verdicts={key: verdict for key, verdict in verdicts.items() if verdict})

    async def started(self, event: TrialStarted) -> None:
        """Record that a lane began a trial."""
        await self._record(event)

    async def progress(self, progress: Progress) -> None:
        """Keep where a trial is."""
        self._progress[progress.trial_id] = progress

    async def report(self, events: Sequence[TrialReported]) -> None:
        """Pass evaluations on to Tune, none before all are known; verdicts come with later orders.

        A retried trial repeats the evaluations of its first attempt; those that Tune has seen are answered at once.
        """
        async with self._changed:
            if self._closed:
                return
            for event in events:
                flight = self._flights[event.trial_id]
                seen = next((i for i, result in enumerate(flight.results) if result.get("steps") == event.step), None)
                if seen is None:
                    seen = len(flight.results)
                    flight.last = dict(event.metrics)
                    flight.results.append(flight.last)
                    self._events.append(event)
                flight.awaiting = seen
            self._changed.notify_all()

    async def finish(self, event: TrialEnded, before: Sequence[TrialReported] = ()) -> None:
        """Record how a trial ended, and reports that nobody decides about `before` it, and let Tune know."""
        async with self._changed:
            if self._closed:
                return
            if (halt := self._flights[event.trial_id].halt) is not None:
                event = halt.signed(event)
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

    async def planned(self) -> int:
        """Wait until a lane knows how many trials it trains at once; all lanes' slots, or 0 if the search is closed.

        Lanes that are not ready yet are taken to have as many as the first one that is: they hold the same base on the
        same kind of device, and a trial too many only waits in the queue.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or any(self._slots()))
            slots = self._slots()
            return 0 if self._closed else sum(own or max(slots) for own in slots)

    async def drained(self, timeout_s: float) -> bool:
        """Stop what Tune left, as at the end of a time budget, and wait until no lane has a trial in hand.

        Returns:
            Whether that was so, or the search is closed, within `timeout_s`.
        """
        async with self._changed:
            for flight in self._flights.values():
                self._release(flight, paused=False)
            self._changed.notify_all()
            return await self._wait(
                lambda: self._closed or all(f.ended or not f.lane for f in self._flights.values()), timeout_s
            )

    async def stop(self, number: int, who: str, why: str = "") -> str:
        """Stop a trial on somebody's behalf: its lane ends it, and Tune hears of it as the trial's own end.

        Args:
            number: Its number in the search.
            who: Who asks.
            why: Why.

        Returns:
            Why it cannot be stopped; empty if it is over, or will be as soon as its lane has saved it.
        """
        async with self._changed:
            if self._closed:
                return "the search is ending: no trial of it is in training any more"
            flights = {flight.spec.number: flight for flight in self._flights.values()}
            flight = flights.get(number)
            # Of one that waits for its first slot nobody has been told: it is not in the registry, and has no adapter.
            if flight is None or not flight.spec.attempt or (flight.ended and flight.halt is None):
                begun = sorted(other for other in flights if flights[other].spec.attempt and not flights[other].ended)
                these = ", ".join(map(str, begun)) or "none"
                return f"trial {number} is not in training, so it cannot be stopped; of this search, these are: {these}"
            flight.halt = flight.halt or Halt(who, why)
            if flight.lane is None and not flight.ended:
                self._finish_in_broker(flight, "stopped", "")
            self._changed.notify_all()
            return ""

    async def close(self) -> None:
        """End the search: whoever waits is let go, and what lanes tell from now on is not recorded."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Inside

    def _rung(self, steps: int) -> list[float]:
        """Return the metric of every trial that was evaluated after so many steps, in this run or an earlier one."""
        known = {trial_id: past.results for trial_id, past in self._past.items()}
        known |= {trial_id: flight.results for trial_id, flight in self._flights.items()}
        found = (next((r for r in results if r.get("steps") == steps), {}) for results in known.values())
        return [result[self._metric] for result in found if result.get(self._metric) is not None]

    def _slots(self) -> list[int]:
        return [state.slots for state in self._lanes.values() if state.state not in OVER]

    async def _wait(self, ready: Callable[[], bool], timeout_s: float | None) -> bool:
        # Not asyncio.wait_for alone: with a timeout of 0 it gives up on a condition that holds already.
        if not ready():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(ready), timeout_s)
        return ready()

    def _tell(self, flight: Flight) -> Verdict | None:
        """Give a verdict, once."""
        verdict = flight.verdict
        if verdict == "go_on":
            flight.awaiting = None
            if self._takes_turns and self._queue:
                verdict = "pause"
                self._queue.append(flight.spec.trial_id)
        if verdict == "stop":
            flight.told = True
        elif verdict == "pause":
            flight.awaiting = None
            self._let_go(flight)
        return verdict

    def _release(self, flight: Flight, *, paused: bool) -> None:
        if flight.ended or (paused and flight.released):  # one that was stopped is not merely paused
            return
        flight.released, flight.paused = True, paused
        if flight.spec.trial_id in self._queue:
            self._queue.remove(flight.spec.trial_id)
        # A trial that was never begun is not in the registry, and need not end there.
        if flight.lane is None and not paused and flight.spec.attempt:
            self._finish_in_broker(flight, "stopped", "")

    async def _recall(self, trial_id: str) -> None:
        if (flight := self._flights.get(trial_id)) is not None:
            self._release(flight, paused=True)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: flight.lane is None or self._closed)

    def _let_go(self, flight: Flight) -> None:
        if flight.lane is not None:
            self._in_hand[flight.lane].discard(flight.spec.trial_id)
        flight.lane = None
        self._progress.pop(flight.spec.trial_id, None)

    async def _record(self, event: Event) -> None:
        async with self._changed:
            # What comes in after the close was cut short, and is trained again when the search is resumed.
            if not self._closed:
                self._events.append(event)
                self._changed.notify_all()

    async def _set_lane(self, lane: str, state: str, message: str = "", slots: int | None = None) -> None:
        async with self._changed:
            known = self._lanes[lane]
            if known.state != "failed":  # the first reason is the one to tell
                self._lanes[lane] = dataclasses.replace(
                    known, state=state, message=message, slots=known.slots if slots is None else slots
                )
            self._changed.notify_all()

    def _take_back(self, lane: str) -> None:
        """Put the trials that a lane had in hand back into the queue, in the order in which they came."""
        for trial_id in sorted(self._in_hand[lane], key=lambda known: self._flights[known].spec.number, reverse=True):
            flight = self._flights[trial_id]
            self._let_go(flight)
            flight.deaths += 1
            flight.awaiting = None
            if flight.released and flight.paused and not flight.halt:
                continue
            if flight.released or flight.halt:
                self._finish_in_broker(flight, "stopped", "its lane died after it was stopped")
            elif flight.deaths >= MAX_ATTEMPTS:
                self._finish_in_broker(flight, "failed", f"its lane's process died {flight.deaths} times in this trial")
            else:
                self._queue.appendleft(trial_id)

    def _finish_in_broker(self, flight: Flight, status: str, message: str) -> None:
        if self._closed:  # cut short
            return
        # What was last measured is all that is known of a trial that no lane ends.
        event = TrialEnded(
            trial_id=flight.spec.trial_id,
            status=status,
            metrics=flight.last if status == "stopped" else {},
            message=message,
            attempt=flight.spec.attempt,
        )
        if flight.halt is not None:
            event = flight.halt.signed(event)
        self._events.append(event)
        self._end(event)

    def _end(self, event: TrialEnded) -> None:
        flight = self._flights[event.trial_id]
        flight.ended = True
        self._let_go(flight)
        if event.trial_id in self._queue:
            self._queue.remove(event.trial_id)
        flight.results.append(final_result(event))
