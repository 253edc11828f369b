"""Which trial is where, and what is to become of it: plain state, in which nothing waits."""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from rankloom.cluster.flight import RUNG, Flight, Halt, Past, Progress, final_result
from rankloom.training.exchange import Orders, TrialSpec, Verdict
from rankloom_registry import Event, TrialEnded, TrialReported, TrialStarted

MAX_ATTEMPTS = 3


class Flights:
    """The trials of a search: in the queue, in a lane's hands, paused or ended.

    Attributes:
        events: What happened, in order.
        progress: Where the trials in training are, by trial_id.
        closed: Whether the search is over: what happens from then on was cut short, and is no event.
    """

    def __init__(
        self, past: Mapping[str, Past] | None = None, *, metric: str = "eval_loss", takes_turns: bool = False
    ) -> None:
        """Begin with none; the arguments are those of `Broker`."""
        self.events: list[Event] = []
        self.progress: dict[str, Progress] = {}
        self.closed = False
        self._past = dict(past or {})
        self._metric = metric
        self._takes_turns = takes_turns
        self._flights: dict[str, Flight] = {}
        self._queue: deque[str] = deque()
        self._in_hand: defaultdict[str, set[str]] = defaultdict(set)  # trials by lane

    # What Ray Tune wants

    def submit(
        self, trial_id: str, number: int, params: dict[str, Any], *, restored: int | None = None, seen: int = 0
    ) -> int:
        """Queue a trial, which no lane has if it is restored; see `Broker.submit`."""
        flight = self._flights.get(trial_id)
        if flight is None:
            past = self._past.get(trial_id, Past(attempts=0))
            spec = TrialSpec(trial_id=trial_id, number=number, params=params, attempt=past.attempts)
            flight = Flight(spec, results=list(past.results), last=dict((past.results or [{}])[-1]))
            flight.begun, flight.ended = past.attempts, past.ended
        elif restored is not None and flight.ended:  # Tune is yet to hear that it is over
            flight = dataclasses.replace(flight, results=flight.results[-1:])
        elif restored is not None:
            spec = dataclasses.replace(flight.spec, params=params, decided=restored)
            flight = Flight(spec, last=flight.last, lease=flight.lease, begun=flight.begun, deaths=flight.deaths)
        self._flights[trial_id] = flight
        flight.lease += 1
        flight.asked = max(flight.asked, seen + 1)
        flight.released = flight.paused = False
        if not flight.ended and flight.lane is None and trial_id not in self._queue:
            self._queue.append(trial_id)
        return flight.lease

    def ask(self, trial_id: str, index: int) -> Flight:
        """Note that Tune wants a trial's result number `index`: it lets the trial go on after the one before."""
        flight = self._flights[trial_id]
        flight.asked = max(flight.asked, index + 1)
        return flight

    def result(self, flight: Flight, index: int) -> dict[str, Any] | None:
        """Return a trial's result number `index`, with its rung; None while there is none."""
        if len(flight.results) <= index:
            return None
        result = flight.results[index]
        return result if result.get("done") else {**result, RUNG: self._rung(result["steps"])}

    def release(self, trial_id: str, lease: int | None = None, *, paused: bool = False) -> None:
        """Note that Tune is done with a trial, or pauses it; see `Broker.release`."""
        flight = self._flights.get(trial_id)
        if flight is not None and lease in (None, flight.lease):
            self._release(flight, paused=paused)

    def release_all(self) -> None:
        """Note that Tune is done with every trial."""
        for flight in self._flights.values():
            self._release(flight, paused=False)

    def in_hand(self, trial_id: str) -> bool:
        """Return whether a lane has a trial."""
        return trial_id in self._flights and self._flights[trial_id].lane is not None

    def any_in_hand(self) -> bool:
        """Return whether a lane has any."""
        return any(self._in_hand.values())

    # What lanes are to do, and what they tell

    def waiting_for(self, lane: str, free: int) -> bool:
        """Return whether there are orders for a lane with so many free slots."""
        return bool(free and self._queue) or any(self._flights[mine].verdict for mine in self._in_hand[lane])

    def orders(self, lane: str, free: int) -> Orders:
        """Give a lane the verdicts about its trials, each once, and as many trials as it has free slots."""
        verdicts = {mine: self._tell(self._flights[mine]) for mine in sorted(self._in_hand[lane])}
        trials: list[TrialSpec] = []
        while len(trials) < free and self._queue:
            flight = self._flights[self._queue.popleft()]
            flight.lane = lane
            flight.spec = dataclasses.replace(flight.spec, attempt=flight.spec.attempt + 1, decided=flight.decided)
            self._in_hand[lane].add(flight.spec.trial_id)
            trials.append(flight.spec)
        return Orders(trials=tuple(trials), verdicts={key: verdict for key, verdict in verdicts.items() if verdict})

    def started(self, event: TrialStarted) -> None:
        """Take in that a lane began a trial."""
        self._flights[event.trial_id].begun = event.attempt
        # What comes in after the close was cut short; a search that is resumed reads of it in the lane's log.
        if not self.closed:
            self.events.append(event)

    def report(self, events: Sequence[TrialReported]) -> None:
        """Take evaluations in.

        A retried trial repeats the evaluations of its first attempt; those that Tune has seen are answered at once.
        """
        if self.closed:
            return
        for event in events:
            flight = self._flights[event.trial_id]
            seen = next((i for i, result in enumerate(flight.results) if result.get("steps") == event.step), None)
            if seen is None:
                seen = len(flight.results)
                flight.last = dict(event.metrics)
                flight.results.append(flight.last)
                self.events.append(event)
            flight.awaiting = seen

    def finish(self, event: TrialEnded, before: Sequence[TrialReported] = ()) -> None:
        """Take a trial's end in, and reports that nobody decides about `before` it."""
        if self.closed:
            return
        self.events += before
        self._end(event)

    def take_back(self, lane: str) -> None:
        """Put the trials that a lane had in hand back into the queue, in the order in which they came."""
        for trial_id in sorted(self._in_hand[lane], key=lambda mine: self._flights[mine].spec.number, reverse=True):
            flight = self._flights[trial_id]
            self._let_go(flight)
            flight.awaiting = None
            if flight.begun == flight.spec.attempt:
                flight.deaths += 1
            else:  # the process was dead when it got the trial, or died before it could say that it began
                flight.spec = dataclasses.replace(flight.spec, attempt=flight.begun)
            if flight.released and flight.paused and not flight.halt:
                continue
            if flight.released or flight.halt:
                self._end_without_lane(flight, "stopped", "its lane died after it was stopped")
            elif flight.deaths >= MAX_ATTEMPTS:
                self._end_without_lane(flight, "failed", f"its lane's process died {flight.deaths} times in this trial")
            else:
                self._queue.appendleft(trial_id)

    # What others want

    def stop(self, number: int, who: str, why: str = "") -> str:
        """Stop a trial on somebody's behalf; see `Broker.stop`."""
        if self.closed:
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
            self._end_without_lane(flight, "stopped", "")
        return ""

    # Inside

    def _rung(self, steps: int) -> list[float]:
        """Return the metric of every trial that was evaluated after so many steps, in this run or an earlier one."""
        known = {trial_id: past.results for trial_id, past in self._past.items()}
        known |= {trial_id: flight.results for trial_id, flight in self._flights.items()}
        found = (next((r for r in results if r.get("steps") == steps), {}) for results in known.values())
        return [result[self._metric] for result in found if result.get(self._metric) is not None]

    def _release(self, flight: Flight, *, paused: bool) -> None:
        if flight.ended or (paused and flight.released):  # one that was stopped is not merely paused
            return
        flight.released, flight.paused = True, paused
        if flight.spec.trial_id in self._queue:
            self._queue.remove(flight.spec.trial_id)
        # A trial that was never begun is not in the registry, and need not end there.
        if flight.lane is None and not paused and flight.spec.attempt:
            self._end_without_lane(flight, "stopped", "")

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

    def _let_go(self, flight: Flight) -> None:
        if flight.lane is not None:
            self._in_hand[flight.lane].discard(flight.spec.trial_id)
        flight.lane = None
        self.progress.pop(flight.spec.trial_id, None)

    def _end_without_lane(self, flight: Flight, status: str, message: str) -> None:
        if self.closed:  # cut short
            return
        # What was last measured is all that is known of a trial that no lane ends.
        event = TrialEnded(
            trial_id=flight.spec.trial_id,
            status=status,
            metrics=flight.last if status == "stopped" else {},
            message=message,
            attempt=flight.spec.attempt,
        )
        self._end(event)

    def _end(self, event: TrialEnded) -> None:
        flight = self._flights[event.trial_id]
        if flight.halt is not None:
            event = flight.halt.signed(event)
        if event.attempt:  # a trial that was never begun is not in the registry, which would refuse its end
            self.events.append(event)
        flight.ended = True
        self._let_go(flight)
        if event.trial_id in self._queue:
            self._queue.remove(event.trial_id)
        flight.results.append(final_result(event))
