"""What the broker knows of trials and lanes: plain records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rankloom.mailbox import stopped_by
from rankloom.training.exchange import TrialSpec, Verdict
from rankloom_registry import TrialEnded

RUNG = "rung"  # key of a result: the metric of every trial evaluated after the same step, of this one too


@dataclass(frozen=True, slots=True)
class Halt:
    """Who wants a trial to be over, and why."""

    who: str
    why: str

    def signed(self, event: TrialEnded) -> TrialEnded:
        """Return how a trial ended on their behalf; what ended otherwise first is nobody's."""
        if event.status != "stopped":
            return event
        message = "; ".join(filter(None, (stopped_by(self.who, self.why), event.message)))
        return replace(event, who=self.who, why=self.why, message=message)


@dataclass(slots=True)
class Flight:
    """A trial between its submission and its end."""

    spec: TrialSpec  # its attempt is the last one that a lane was given; 0 before the first
    begun: int = 0  # the last attempt of which a lane said that it began
    results: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)  # the latest result, also of before it was restored
    lease: int = 0  # counts its submissions
    asked: int = 0  # results that Tune has asked for
    awaiting: int | None = None  # the result that its lane wants a verdict about
    released: bool = False  # Tune no longer wants it, or not now
    paused: bool = False  # and will come back with it
    halt: Halt | None = None  # somebody other than Tune wants it to be over
    told: bool = False  # its lane knows that it is to stop
    ended: bool = False
    lane: str | None = None
    deaths: int = 0  # of processes that trained it

    @property
    def verdict(self) -> Verdict | None:
        """What its lane should be told, if anything."""
        if self.halt is not None:
            return None if self.told else "stop"
        if self.released:
            return None if self.told else "pause" if self.paused else "stop"
        return "go_on" if self.awaiting is not None and self.asked > self.awaiting + 1 else None

    @property
    def decided(self) -> int:
        """The last step after which it was told to go on."""
        steps = [result["steps"] for result in self.results[: max(0, self.asked - 1)] if "steps" in result]
        return max(steps, default=self.spec.decided)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a trial on a lane is; seen by the terminal only."""

    trial_id: str
    number: int
    step: int
    train_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """What is known of a lane."""

    lane: str
    state: str = "starting"  # then 'loading', 'ready', and 'done' or 'failed'
    message: str = ""  # why it failed; else how it trains
    starts: int = 0
    pid: int | None = None
    slots: int = 0  # trials that it trains at once; known when it is ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What an earlier run of the search saw of a trial.

    Attributes:
        attempts: How often it was begun.
        results: Its evaluations, so that a scheduler learns what it knew; of one that ended, the last is its
            `final_result`.
        ended: Whether it ended, and is not trained again.
    """

    attempts: int
    results: Sequence[dict[str, Any]] = ()
    ended: bool = False


def final_result(event: TrialEnded) -> dict[str, Any]:
    """Return the last result that Tune sees of a trial.

    A failed trial has no metric, so that no scheduler and no study takes a number for one; `outcome` says what it was.
    """
    metrics = dict(event.metrics) if event.status != "failed" else {}
    return {**metrics, "done": True, "outcome": event.status}
