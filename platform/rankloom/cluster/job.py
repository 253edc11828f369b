"""What the driver of a search is given, and how it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankloom.cluster.flight import LaneState, Past, Progress
from rankloom.config import SearchConfig, TrainingConfig
from rankloom.mailbox import Request, stopped_by
from rankloom.runs import Run
from rankloom_registry import Event

Watch = Callable[[Sequence[Event], Sequence[LaneState], Sequence[Progress]], None]
STOP = threading.Event()  # one search a process; a module's own, because Tune pickles the stopper


class StoppedOnRequest(KeyboardInterrupt):
    """Somebody asked for the end of a search, from another process: what Ctrl-C is in this one.

    Attributes:
        request: Who asked, and why.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(stopped_by(request.who, request.why))
        self.request = request


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the driver needs of a search.

    Attributes:
        run: Its run folder.
        config: Its configuration.
        training: Settings that the trials share, with `max_steps` and `eval_steps` set.
        space: Optuna distributions by name, or a function of an Optuna trial.
        resolve: Turns sampled parameters into a trial's configuration.
        points: Points to try first.
        largest: Configuration of the largest adapter that is to be expected.
        past: What an earlier run saw of its trials, by trial_id.
        verbose: Whether Ray may talk.
    """

    run: Run
    config: SearchConfig
    training: TrainingConfig
    space: Any
    resolve: Callable[[dict[str, Any]], dict[str, Any]]
    points: list[dict[str, Any]]
    largest: dict[str, Any]
    past: Mapping[str, Past] = field(default_factory=dict)
    verbose: bool = False
