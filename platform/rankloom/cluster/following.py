"""Follows a search while Ray Tune has the main thread: carries events on, and hears of deaths and of Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from rankloom.cluster.job import STOP, Watch
from rankloom.cluster.lane import cause_of
from rankloom.cluster.steering import Steering
from rankloom_registry import Event


class Follower(threading.Thread):
    """Carries the broker's events to the registry and the terminal, and what others ask to who does it.

    It does so while Tune has the main thread.

    Attributes:
        error: What went wrong, if anything did.
    """

    def __init__(
        self,
        broker: Any,
        lanes: Mapping[ray.ObjectRef[None], str],
        record: Callable[[Sequence[Event]], None],
        watch: Watch,
        steering: Steering,
    ) -> None:
        """Follow a search.

        Args:
            broker: Handle of its broker.
            lanes: The name of the lane that each of Ray's tasks runs.
            record: As for `run_job`.
            watch: As for `run_job`.
            steering: Does what others ask.
        """
        super().__init__(name="rankloom-follower", daemon=True)
        self._broker = broker
        self._lanes = dict(lanes)
        self._record = record
        self._watch = watch
        self._steering = steering
        self._over = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Carry events on until `finish`; what goes wrong ends the search."""
        seen = 0
        # Whatever goes wrong here (a full disk, a lost broker) must end the search and reach the caller.
        try:
            while True:
                over = self._over.is_set()
                events = ray.get(self._broker.events.remote(seen, 0.0 if over else 1.0))
                if events:
                    self._record(events)
                    seen += len(events)
                if not STOP.is_set():
                    self._bury()
                self._watch([*events, *self._steering.obey()], *ray.get(self._broker.state.remote()))
                if over and not events:
                    return
        except BaseException as error:  # noqa: BLE001
            self.error = error
            STOP.set()
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._broker.close.remote())

    def _bury(self) -> None:
        """Tell the broker of lanes whose task died, with its node or by a signal: nobody else can."""
        ended, _ = ray.wait(list(self._lanes), num_returns=len(self._lanes), timeout=0) if self._lanes else ([], [])
        for task in ended:
            lane = self._lanes.pop(task)
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:
                ray.get(self._broker.lane_ended.remote(lane, cause_of(error)))

    def finish(self) -> None:
        """Wait until all events are recorded."""
        self._over.set()
        self.join()


@contextlib.contextmanager
def interruptible(broker: Any) -> Iterator[None]:
    """Let the first Ctrl-C close the broker and end Tune's loop; a second one raises at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_interrupt(number: int, frame: Any) -> None:
        if STOP.is_set():
            raise KeyboardInterrupt
        STOP.set()
        broker.close.remote()

    before = {number: signal.signal(number, on_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
