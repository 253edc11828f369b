"""Follows a search while Ray Tune has the main thread: carries events on, and hears Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from rankloom.cluster.job import STOP, Watch
from rankloom.cluster.steering import Steering
from rankloom_registry import Event


class Follower(threading.Thread):
    """Carries the broker's events to the registry and the terminal, and what others ask to who does it.

    It does so while Tune has the main thread.

    Attributes:
        error: What went wrong, if anything did.
    """

    def __init__(
        self, broker: Any, record: Callable[[Sequence[Event]], None], watch: Watch, steering: Steering
    ) -> None:
        """Follow what `broker` hears; `record` and `watch` are those of `run_job`."""
        super().__init__(name="rankloom-follower", daemon=True)
        self._broker = broker
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
                self._watch([*events, *self._steering.obey()], *ray.get(self._broker.state.remote()))
                if over and not events:
                    return
        except BaseException as error:  # noqa: BLE001
            self.error = error
            STOP.set()
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._broker.close.remote())

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
