"""Which lanes there are and how each is: plain state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from rankloom.cluster.flight import LaneState

OVER = ("failed", "done")  # states of a lane that trains no more


class Lanes:
    """The lanes of a search, known before they come."""

    def __init__(self, names: Iterable[str]) -> None:
        """Expect lanes of these names."""
        self._states = {name: LaneState(lane=name) for name in names}

    def states(self) -> list[LaneState]:
        """Return how each is."""
        return list(self._states.values())

    def starts(self, lane: str) -> int:
        """Return how often a process of a lane came up."""
        return self._states[lane].starts

    def started(self, lane: str, pid: int) -> None:
        """Note that a lane's process is up, its first or another one."""
        self._states[lane] = LaneState(lane=lane, state="loading", starts=self.starts(lane) + 1, pid=pid)

    def ready(self, lane: str, slots: int, message: str) -> None:
        """Note how many trials a lane trains at once, and how."""
        self._set(lane, state="ready", slots=slots, message=message)

    def ended(self, lane: str, message: str) -> None:
        """Note that a lane is over; a message means that it failed."""
        self._set(lane, state="failed" if message else "done", message=message)

    def is_over(self, lane: str) -> bool:
        """Return whether a lane trains no more."""
        return self._states[lane].state in OVER

    def all_over(self) -> bool:
        """Return whether none is left."""
        return all(map(self.is_over, self._states))

    def planned(self) -> int:
        """Return how many trials are trained at once, as far as is known; see `Broker.planned`."""
        slots = [state.slots for name, state in self._states.items() if not self.is_over(name)]
        return sum(own or max(slots) for own in slots)

    def _set(self, lane: str, **facts: object) -> None:
        if self._states[lane].state != "failed":  # the first reason is the one to tell
            self._states[lane] = dataclasses.replace(self._states[lane], **facts)  # type: ignore[arg-type]
