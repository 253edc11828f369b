"""The program that works for the dashboard: hears an order, does it, and says how it goes, a JSON line at a time.

It ends as Ctrl-C would end it when its standard input ends: the dashboard has cancelled it, or is gone.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from rankloom.errors import RankloomError
from rankloom_dashboard.jobs.evaluating import evaluate
from rankloom_dashboard.jobs.playing import play
from rankloom_dashboard.jobs.promoting import promote
from rankloom_dashboard.jobs.verifying import verify
from rankloom_registry import RegistryError, acting_for

INTERRUPTED = 130
MOST_SECONDS_TO_STOP = 30.0  # for work that does not hear of it, such as a long call into a library


class Talk:
    """What a worker says to its dashboard, and hears from it."""

    def __init__(self, out: int) -> None:
        """Begin.

        Args:
            out: A descriptor that nothing else writes to.
        """
        self._out = os.fdopen(out, "w", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def __call__(self, message: dict[str, Any]) -> None:
        """Say something: `progress` as [stage, done, total], or `told` with whatever the page of this kind shows."""
        with self._lock:
            self._out.write(json.dumps(message) + "\n")

    def hear(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the next thing that the dashboard says, or None if it says nothing for so long."""
        with suppress(queue.Empty):
            return self._heard.get(timeout=timeout_s)
        return None

    def listen(self) -> None:
        """Hear until the dashboard is gone, and end the program then."""
        for line in _lines(0):
            with suppress(ValueError):  # half a line of a dashboard that died
                self._heard.put(json.loads(line))
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        signal.pthread_kill(main_thread, signal.SIGINT)
        threading.Event().wait(MOST_SECONDS_TO_STOP)
        os._exit(INTERRUPTED)


# By kind: does an order, and returns its result.
WORK: dict[str, Callable[[dict[str, Any], Talk], dict[str, Any]]] = {
    "evaluate": evaluate,
    "playground": play,
    "promote": promote,
    "verify": verify,
}


def main() -> int:
    """Do the order on standard input."""
    # Whatever a library prints belongs to people; what is told goes out by a descriptor of its own.
    tell = Talk(os.dup(1))
    os.dup2(2, 1)
    threading.Thread(target=tell.listen, daemon=True).start()
    try:
        asked = tell.hear()
        assert asked is not None
        with acting_for(asked["who"]):
            tell({"result": WORK[asked["kind"]](asked["order"], tell)})
    except (RankloomError, RegistryError) as error:
        tell({"error": str(error)})
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _lines(descriptor: int) -> Iterator[bytes]:
    """Read lines past `sys.stdin`, whose lock a thread that waits would still hold when the program ends."""
    rest = b""
    while read := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + read).split(b"\n")
        yield from lines


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server may have been started where it is ignored
    sys.exit(main())
