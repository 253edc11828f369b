"""The owner of a registry: keeps the file open for as long as a search runs, and commits for everybody in groups."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import duckdb

from rankloom_registry.errors import EventError, RegistryError, RegistryFormatError, RegistryNotFoundError
from rankloom_registry.events.event import Event
from rankloom_registry.store import schema
from rankloom_registry.store.database import attach
from rankloom_registry.store.journal import Journal
from rankloom_registry.store.ledger import Ack, commit, last_sequence
from rankloom_registry.store.locking import turn
from rankloom_registry.store.recovery import died_open, recover
from rankloom_registry.store.service import Door, GoneError
from rankloom_registry.store.snapshots import Snapshot, Snapshots

PUBLISH_S = 2.0
_SHARE = 10  # publishing may take one part in so many of the time


@dataclass(slots=True)
class _Order:
    events: Sequence[Event]
    answer: Future[Ack] = field(default_factory=Future)


class Owner:
    """Keeps a registry for the length of the body; every `Registry` on this machine then works through it.

    One thread of its own has the file and commits what waits, in one transaction and with one flush of the journal.
    Another one publishes snapshots beside it. An owner that can write no longer gives the file up, and everybody takes
    turns again.
    """

    def __init__(self, path: Path, *, wait_s: float = 60.0, publish_s: float = PUBLISH_S) -> None:
        """Name the registry; nothing is opened yet.

        Args:
            path: The resolved path of the registry file, of the newest schema.
            wait_s: The longest wait for its turn, in seconds.
            publish_s: The least time between two snapshots that nobody asked for, in seconds.
        """
        self._path = path
        self._wait_s = wait_s
        self._publish_s = publish_s
        self._journal = Journal(path)
        self._snapshots = Snapshots(path)
        self._news = threading.Condition()  # guards all below
        self._orders: list[_Order] = []
        self._note = ""
        self._committed = 0
        self._published: Snapshot | None = None
        self._wanted = 0
        self._ready = False
        self._closing = False
        self._over = False
        self._error: RegistryError | None = None
        self._refused: RegistryError | None = None  # why the last snapshot could not be published
        self._thread = threading.Thread(target=self._keep, name="rankloom-owner", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        with self._news:
            self._news.wait_for(lambda: self._ready or self._over)
        if self._over:
            raise self._error or GoneError(f"the owner of {self._path} ended as soon as it began")
        return self

    def __exit__(self, *exception: object) -> None:
        with self._news:
            self._closing = True
            self._news.notify_all()
        self._thread.join()

    @property
    def over(self) -> bool:
        """Whether the file was given up."""
        return self._over

    def record(self, events: Sequence[Event]) -> Ack:
        """Record events, all of them or none; from any thread.

        Args:
            events: In the order in which they happened.

        Raises:
            EventError: If one speaks of something that is not recorded, or holds a value of the wrong type.
            RegistryWriteError: If the file or the journal cannot be written.
            GoneError: If the owner ended first.
        """
        order = _Order(events)
        with self._news:
            if self._over or self._closing:
                raise GoneError(f"the owner of {self._path} has ended; record again")
            self._orders.append(order)
            self._news.notify_all()
        return order.answer.result()

    def snapshot(self, at_least: int = 0) -> Snapshot:
        """Give the last snapshot, or a new one if that does not hold the event number `at_least`.

        Raises:
            RegistryWriteError: If a new one cannot be published.
            GoneError: If the owner ended first.
        """
        with self._news:
            wanted = min(at_least, self._committed)
            self._wanted, self._refused = max(self._wanted, wanted), None
            self._news.notify_all()
            self._news.wait_for(lambda: self._over or self._refused or self._fresh(wanted))
            if self._refused is not None:
                raise self._refused
            if self._over or self._published is None:
                raise GoneError(f"the owner of {self._path} has ended; ask again")
            return self._published

    def _fresh(self, wanted: int) -> bool:
        return self._published is not None and self._published.sequence >= wanted

    def _keep(self) -> None:
        group: list[_Order] = []
        error: Exception = GoneError(f"the owner of {self._path} has ended; record again")
        try:
            with turn(self._path, write=True, timeout_s=self._wait_s) as kept:
                if not self._path.exists():
                    raise RegistryNotFoundError(f"there is no registry at {self._path}; open it with create=True")
                if died_open(self._path):
                    self._note = recover(self._path, timeout_s=self._wait_s)
                with attach(self._path, write=True, timeout_s=self._wait_s) as connection:
                    if schema.applied(connection, self._path) != list(schema.MIGRATIONS):
                        raise RegistryFormatError(f"{self._path} is of an older version; open it with create=True")
                    self._committed = last_sequence(connection)
                    with self._publishing(connection), Door(self) as door:
                        kept.serve(door.path)
                        with self._news:
                            self._ready = True
                            self._news.notify_all()
                        while group := self._next_group():
                            self._commit(connection, group)
        except RegistryError as reason:
            self._error = error = reason
        finally:
            with self._news:
                self._over = True
                for order in group:
                    if not order.answer.done():
                        order.answer.set_exception(error)
                for order in self._orders:
                    order.answer.set_exception(GoneError(f"the owner of {self._path} has ended; record again"))
                self._orders.clear()
                self._news.notify_all()

    def _next_group(self) -> list[_Order]:
        with self._news:
            self._news.wait_for(lambda: self._orders or self._closing)
            group, self._orders = self._orders, []
            return group

    def _commit(self, connection: duckdb.DuckDBPyConnection, group: list[_Order]) -> None:
        try:
            acks = commit(connection, self._journal, [order.events for order in group])
        except EventError as error:
            if len(group) == 1:
                group[0].answer.set_exception(error)
                return
            for order in group:  # a mistake is its sender's only
                self._commit(connection, [order])
            return
        with self._news:
            note, self._note = self._note, ""
            self._committed = acks[0].sequence
            self._news.notify_all()
        for order, ack in zip(group, acks, strict=True):
            order.answer.set_result(Ack(ack.applied, ack.sequence, note))

    @contextmanager
    def _publishing(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        # A cursor is a connection of its own, so that nobody waits for a commit while a large registry is copied.
        cursor = connection.cursor()
        self._published = self._snapshots.publish(cursor)
        publisher = threading.Thread(target=self._publish, args=(cursor,), name="rankloom-publisher", daemon=True)
        publisher.start()
        try:
            yield
        finally:
            with self._news:
                self._closing = True
                self._news.notify_all()
            publisher.join()
            cursor.close()
            self._snapshots.withdraw()

    def _publish(self, cursor: duckdb.DuckDBPyConnection) -> None:
        due = time.monotonic() + self._publish_s
        while self._is_due(due):
            began = time.monotonic()
            published, refused = None, None
            try:
                published = self._snapshots.publish(cursor)
            except (RegistryError, duckdb.Error) as error:  # a full disk must not end the search
                refused = error if isinstance(error, RegistryError) else RegistryError(f"cannot publish: {error}")
            took = time.monotonic() - began
            due = began + took + max(self._publish_s, _SHARE * took)
            with self._news:
                self._published = published or self._published
                self._wanted, self._refused = (self._wanted, None) if published else (0, refused)
                self._news.notify_all()

    def _is_due(self, due: float) -> bool:
        """Wait until a snapshot is asked for, or due as something has changed; False when the owner ends."""
        with self._news:
            while not self._closing:
                if not self._fresh(self._wanted):
                    return True
                rest = None if self._fresh(self._committed) else due - time.monotonic()
                if rest is not None and rest <= 0:
                    return True
                self._news.wait(rest)
            return False
