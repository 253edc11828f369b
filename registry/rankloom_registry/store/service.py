"""The owner's door: a Unix socket at which other processes of the same user have events recorded while it owns."""

from __future__ import annotations

import json
import shutil
import socket
import socketserver
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from rankloom_registry import errors
from rankloom_registry.errors import RegistryBusyError, RegistryError
from rankloom_registry.events.event import Event
from rankloom_registry.store.ledger import Ack
from rankloom_registry.store.snapshots import Snapshot

_MOST_BYTES = 256 << 20  # of one request or reply
_LONGEST_PATH = 100  # bytes; the system allows 108


class GoneError(RegistryError, ConnectionError):
    """Nobody answers at the door any more: what was asked may or may not have been done, so ask somebody again."""


class Answers(Protocol):
    """Who stands behind the door."""

    def record(self, events: Sequence[Event]) -> Ack:
        """Record events."""

    def snapshot(self, at_least: int) -> Snapshot:
        """Give a snapshot that holds the event with this number."""


class Door:
    """Takes orders at a socket, a JSON line each, for the length of the body.

    Attributes:
        path: The socket, in a folder that only this user may enter.
    """

    def __init__(self, owner: Answers) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rankloom-"))
        if len(bytes(self._folder)) > _LONGEST_PATH - len("/door"):
            self._folder.rmdir()
            self._folder = Path(tempfile.mkdtemp(prefix="rankloom-", dir="/tmp"))
        self.path = str(self._folder / "door")
        self._server = _Server(self.path, owner)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="rankloom-door", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, path: str, owner: Answers) -> None:
        super().__init__(path, _Handler)
        self.owner = owner

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a caller who hung up; what this side did wrong is told to the caller."""


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        line = self.rfile.readline(_MOST_BYTES)
        try:
            reply = _answer(self.server.owner, line)
        except GoneError:
            return  # hanging up says that
        except RegistryError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        self.wfile.write(json.dumps(reply).encode() + b"\n")


def _answer(owner: Answers, line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError:
        request = None
    match request:
        case {"record": [*lines]}:
            ack = owner.record([Event.from_json(text) for text in lines])
            return {"applied": ack.applied, "sequence": ack.sequence, "note": ack.note}
        case {"snapshot": int(at_least)}:
            snapshot = owner.snapshot(at_least)
            return {"file": str(snapshot.file), "sequence": snapshot.sequence}
    raise RegistryError(f"an owner records or gives a snapshot; got {line[:80]!r}; use the same version of rankloom")


def ask_to_record(door: str, events: Sequence[Event], *, timeout_s: float) -> Ack:
    """Have an owner record events.

    Args:
        door: The path of its socket.
        events: In the order in which they happened.
        timeout_s: The longest wait for the answer, in seconds.

    Raises:
        GoneError: If nobody answers there.
        PermissionError: If the owner is another user's.
        RegistryBusyError: If the answer took too long.
        RegistryError: What the owner raised.
    """
    return Ack(**_ask(door, {"record": [event.to_json() for event in events]}, timeout_s))


def ask_for_snapshot(door: str, at_least: int, *, timeout_s: float) -> Snapshot:
    """Have an owner give a snapshot that holds the event number `at_least`; raises as `ask_to_record`."""
    reply = _ask(door, {"snapshot": at_least}, timeout_s)
    return Snapshot(Path(reply["file"]), reply["sequence"])


def _ask(door: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(max(timeout_s, 0.001))
            connection.connect(door)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as file:
                line = file.readline(_MOST_BYTES)
    except PermissionError:
        raise
    except TimeoutError:
        raise RegistryBusyError(
            f"the process that keeps the registry did not answer within {timeout_s:g} s; try again, or end it"
        ) from None
    except OSError as error:
        raise GoneError(f"nobody answers at {door}: {error.strerror}") from error
    if not line.endswith(b"\n"):
        raise GoneError(f"{door} hung up")
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        raise _kind(reply["error"])(reply["message"])
    return reply


def _kind(name: str) -> type[RegistryError]:
    kind = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, RegistryError) else RegistryError
