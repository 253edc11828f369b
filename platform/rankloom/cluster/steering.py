"""What the driver does with requests: stops a trial, stops the search, or lets it propose more trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.tune.schedulers import PopulationBasedTraining

from rankloom.cluster.job import STOP, Job
from rankloom.cluster.proposing import Room
from rankloom.config import MOST_SAMPLES
from rankloom.errors import SearchError
from rankloom.mailbox import Mailbox, Request
from rankloom_registry import Event, SearchExtended


class Steering:
    """Does what others ask of a search that runs.

    Attributes:
        stopped: Who asked for its end, if anybody did.
    """

    def __init__(self, job: Job, broker: Any, room: Room, record: Callable[[Sequence[Event]], None]) -> None:
        """Steer a search.

        Args:
            job: The search.
            broker: Handle of its broker.
            room: How many trials it proposes.
            record: As for `run_job`.
        """
        self._job = job
        self._broker = broker
        self._room = room
        self._record = record
        self._mailbox = Mailbox(job.run.requests)
        self.stopped: Request | None = None

    def obey(self) -> list[Event]:
        """Do what was asked since the last time, and answer.

        Returns:
            What was recorded.
        """
        recorded: list[Event] = []
        for request in self._mailbox.take():
            try:
                events = self._act(request)
            except SearchError as refusal:
                self._mailbox.answer(request, refusal=str(refusal))
                continue
            self._record(events)
            recorded += events
            self._mailbox.answer(request, num_samples=self._room.total)
        return recorded

    def _act(self, request: Request) -> list[Event]:
        match request.kind:
            case "stop_trial":
                refusal = ray.get(self._broker.stop.remote(request.trial, request.who, request.why))
                if refusal:
                    raise SearchError(refusal)
            case "stop_search":
                self.stopped = self.stopped or request
                STOP.set()
                ray.get(self._broker.close.remote())
            case "add_trials":
                return [self._extended(request)]
        return []

    def _extended(self, request: Request) -> Event:
        assert request.count is not None
        if STOP.is_set():
            raise SearchError("the search is being stopped: go on with it by --resume, and ask again")
        if isinstance(self._job.config.scheduler, PopulationBasedTraining):
            raise SearchError(
                "population-based training works on the population that it began with: start another search with a "
                "larger num_samples"
            )
        if self._room.total + request.count > MOST_SAMPLES:
            raise SearchError(
                f"a search has at most {MOST_SAMPLES} trials, this one has {self._room.total}: add fewer than "
                f"{request.count}, or start another one"
            )
        # First to the record by which a resumed search goes. It says how many trials there are, not how many more: a
        # driver that dies after it has added them once, and what is left of the request is thrown away.
        try:
            total = self._room.extend(request.count, self._job.run.extend)
        except OSError as error:
            raise SearchError(f"cannot write it down in {self._job.run.folder}: {error.strerror}") from error
        return SearchExtended(search_id=self._job.run.search_id, num_samples=total, who=request.who, why=request.why)
