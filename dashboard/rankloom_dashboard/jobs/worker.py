"""The program that works for the dashboard: hears one order, does it, and says how it goes, a JSON line at a time.

It ends as Ctrl-C would end it when its standard input ends: the dashboard has cancelled it, or is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from rankloom.errors import RankloomError
from rankloom_dashboard.jobs.promoting import promote
from rankloom_dashboard.jobs.verifying import verify
from rankloom_registry import RegistryError, acting_for

INTERRUPTED = 130
Tell = Callable[[dict[str, Any]], None]
WORK: dict[str, Callable[[dict[str, Any], Tell], dict[str, Any]]] = {  # by kind: does an order, returns its result
    "promote": promote,
    "verify": verify,
}


def main() -> int:
    """Do the order on standard input."""
    # Whatever a library prints belongs to people; what is told goes out by a descriptor of its own.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(message: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")

    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        with acting_for(asked["who"]):
            tell({"result": WORK[asked["kind"]](asked["order"], tell)})
    except (RankloomError, RegistryError) as error:
        tell({"error": str(error)})
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _end_with_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server may have been started where it is ignored
    sys.exit(main())
