"""How many trials Ray Tune asks the searcher for: as many as the search began with, or more while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.search_generator import SearchGenerator

from rankloom.cluster.searcher import OptunaSearcher
from rankloom.errors import SearchError


class Room:
    """Room for so many trials; others may add some until Tune's loop ends.

    Attributes:
        total: How many trials the search proposes.
    """

    def __init__(self, total: int) -> None:
        """Begin with room for `total` trials."""
        self.total = total
        self._lock = threading.Lock()
        self._over = False
        self._exhausted: Callable[[], bool] = lambda: False

    def __reduce__(self) -> tuple[type[Room], tuple[int]]:
        return Room, (self.total,)  # Tune pickles what it is given, for a way to resume that is not used here

    def ends_with(self, exhausted: Callable[[], bool]) -> None:
        """Ask from now on whether there is anything left to propose."""
        self._exhausted = exhausted

    def extend(self, count: int, keep: Callable[[int], None]) -> int:
        """Make room for more trials; from any thread.

        Args:
            count: How many more.
            keep: Called with the new total before it counts; what it raises leaves everything as it was.

        Returns:
            The new total.

        Raises:
            SearchError: No trial can be proposed any more.
        """
        with self._lock:
            if self._over:
                raise SearchError("every trial of this search has ended: it proposes no more; start another search")
            if self._exhausted():
                raise SearchError("the sampler has nothing left to propose, as a grid at its end; start another search")
            total = self.total + count
            keep(total)
            self.total = total
        return total

    def close_if(self, ended: Callable[[], bool]) -> None:
        """Take no more trials if Tune's loop is about to end; whether it is cannot change meanwhile."""
        with self._lock:
            self._over = self._over or ended()

    def close(self) -> None:
        """Take no more trials."""
        self.close_if(lambda: True)


class Proposals(SearchGenerator):
    """Tune's trials from a searcher, for as long as there is room."""

    def __init__(self, searcher: OptunaSearcher, room: Room, *, at_once: int) -> None:
        """Wrap a searcher as Tune would.

        Args:
            searcher: Proposes the trials.
            room: How many.
            at_once: Trials in flight.
        """
        super().__init__(ConcurrencyLimiter(searcher, max_concurrent=at_once))
        self._room = room
        room.ends_with(searcher.exhausted)

    @property
    def total_samples(self) -> int:
        """How many trials there are to be."""
        return self._room.total

    def is_finished(self) -> bool:
        """Whether nothing is to be proposed any more, as far as is known now."""
        return self._counter >= self._room.total or self._finished


class Population:
    """A searcher's trials for population-based training, which Tune's own `SearchGenerator` is refused by.

    The refusal is for searchers that learn from a trial's final score, whose configuration was not theirs by then. A
    whole population is drawn before its first member ends, so that this one has nothing left to propose.
    """

    def __init__(self, searcher: OptunaSearcher, *, at_once: int) -> None:
        """Wrap a searcher as Tune would.

        Args:
            searcher: Proposes the population.
            at_once: Trials in flight: the size of the population.
        """
        self._generator = SearchGenerator(ConcurrencyLimiter(searcher, max_concurrent=at_once))

    def __getattr__(self, name: str) -> Any:
        if name == "_generator":  # asked of a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self._generator, name)
