"""How a program comes to a registry: in its turn, or through the owner that keeps it meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import duckdb

from rankloom_registry.errors import (
    RegistryBusyError,
    RegistryError,
    RegistryNotFoundError,
    RegistryWriteError,
)
from rankloom_registry.events.event import Event
from rankloom_registry.store.database import attach
from rankloom_registry.store.journal import Journal
from rankloom_registry.store.ledger import Ack, commit
from rankloom_registry.store.locking import OwnedError, turn
from rankloom_registry.store.recovery import died_open, recover, tell
from rankloom_registry.store.service import GoneError, ask_for_snapshot, ask_to_record
from rankloom_registry.store.snapshots import Snapshot, Snapshots

_RETRY_S = 0.02
_NEWEST = 1 << 62  # no event has a number so high: an owner then gives all that it has committed
_Answer = TypeVar("_Answer")


@contextmanager
def attached(path: Path, *, write: bool, timeout_s: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Attach the database file as `db` in its turn, and detach it.

    Args:
        path: The resolved path of the file.
        write: Whether it may be changed.
        timeout_s: The longest wait for a turn, in seconds.

    Yields:
        A connection whose default database is the file's.

    Raises:
        RegistryNotFoundError: If the file is gone.
        RegistryBusyError: If the turn did not come in time; `OwnedError` if an owner has it.
        RegistryFormatError: If the file is not a DuckDB database.
        RegistryWriteError: If it cannot be written.
    """
    deadline = time.monotonic() + timeout_s
    with ExitStack() as stack:
        stack.enter_context(turn(path, write=write, timeout_s=timeout_s))
        if not path.exists():  # DuckDB would make an empty one
            raise RegistryNotFoundError(f"there is no registry at {path} any more; open it again where it is now")
        if died_open(path):
            if write:
                _recover(path, _left(deadline))
            else:
                stack.close()
                # Who may not write reads what DuckDB makes of the log.
                with suppress(RegistryWriteError), turn(path, write=True, timeout_s=_left(deadline)):
                    if died_open(path):
                        _recover(path, _left(deadline))
                stack.enter_context(turn(path, write=False, timeout_s=_left(deadline)))
        yield stack.enter_context(attach(path, write=write, timeout_s=_left(deadline)))


@contextmanager
def reading(path: Path, *, timeout_s: float, at_least: int = 0) -> Iterator[duckdb.DuckDBPyConnection]:
    """Attach the registry to read it: the file in its turn, or a snapshot while an owner keeps the file.

    Args:
        path: The resolved path of the file.
        timeout_s: The longest wait, in seconds.
        at_least: The number of an event that the snapshot must hold.

    Yields:
        A connection whose default database is the registry's.

    Raises:
        RegistryError: As `attached`, and what the owner raised.
    """
    with ExitStack() as stack:

        def own_turn(left_s: float) -> duckdb.DuckDBPyConnection:
            return stack.enter_context(attached(path, write=False, timeout_s=left_s))

        def owners(door: str, left_s: float) -> duckdb.DuckDBPyConnection:
            file = _snapshot(path, door, at_least, left_s).file
            try:
                return stack.enter_context(attach(file, write=False, timeout_s=left_s))
            except RegistryError:
                if file.exists():
                    raise
                raise GoneError(f"{file} was replaced by a newer one") from None

        yield _either(own_turn, owners, timeout_s)


def record(path: Path, events: Sequence[Event], *, timeout_s: float) -> Ack:
    """Record events, all of them or none, in a turn or through the owner.

    Args:
        path: The resolved path of the file.
        events: In the order in which they happened.
        timeout_s: The longest wait, in seconds.

    Raises:
        EventError: If one speaks of something that is not recorded, or holds a value of the wrong type.
        RegistryError: As `attached`.
    """

    def own_turn(left_s: float) -> Ack:
        with attached(path, write=True, timeout_s=left_s) as connection:
            return commit(connection, Journal(path), [events])[0]

    def owners(door: str, left_s: float) -> Ack:
        return ask_to_record(door, events, timeout_s=left_s)

    ack = _either(own_turn, owners, timeout_s)
    if ack.note:
        tell(ack.note)
    return ack


def snapshot(path: Path, *, timeout_s: float) -> Snapshot:
    """Give a snapshot of the registry as it is now; raises as `attached`, and what the owner raised."""

    def own_turn(left_s: float) -> Snapshot:
        with attached(path, write=True, timeout_s=left_s) as connection:
            return Snapshots(path).publish(connection)

    def owners(door: str, left_s: float) -> Snapshot:
        return ask_for_snapshot(door, _NEWEST, timeout_s=left_s)

    return _either(own_turn, owners, timeout_s)


def _either(own_turn: Callable[[float], _Answer], owners: Callable[[str, float], _Answer], timeout_s: float) -> _Answer:
    """Do something in a turn or through the owner; one that was killed meanwhile leaves the turn to others."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return own_turn(_left(deadline))
        except OwnedError as error:
            owned = error
        try:
            return owners(owned.socket, _left(deadline))
        except GoneError:
            if time.monotonic() >= deadline:
                raise owned from None
        except PermissionError:
            raise RegistryBusyError(f"{owned}; it belongs to another user") from None
        time.sleep(_RETRY_S)


def _snapshot(path: Path, door: str, at_least: int, left_s: float) -> Snapshot:
    try:
        return ask_for_snapshot(door, at_least, timeout_s=left_s)
    except PermissionError:  # another user's, who may let us read what was published
        latest = Snapshots(path).latest()
        if latest is None or latest.sequence < at_least:
            raise
        return latest


def _recover(path: Path, timeout_s: float) -> None:
    if note := recover(path, timeout_s=timeout_s):
        tell(note)


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
