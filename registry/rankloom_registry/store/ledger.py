"""Commits events: folded into the tables, written to the journal, and only then acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import duckdb

from rankloom_registry.errors import EventError
from rankloom_registry.events.event import Event
from rankloom_registry.events.fold import append
from rankloom_registry.store.database import STATEMENT_ERRORS, first_line
from rankloom_registry.store.journal import Journal


@dataclass(frozen=True, slots=True)
class Ack:
    """That events are recorded, and will be found again whatever dies.

    Attributes:
        applied: How many of them were new.
        sequence: The number of the last event in the registry: what is read with this number holds them.
        note: What the user should be told.
    """

    applied: int
    sequence: int
    note: str = ""


def commit(connection: duckdb.DuckDBPyConnection, journal: Journal, batches: Sequence[Sequence[Event]]) -> list[Ack]:
    """Record batches of events in one transaction, all of them or none.

    Args:
        connection: A connection that may write and whose default database is the registry's.
        journal: The registry's journal.
        batches: The events of each sender, in the order in which they happened.

    Returns:
        An acknowledgement a batch.

    Raises:
        EventError: If an event speaks of something that is not recorded, or holds a value of the wrong type.
        RegistryWriteError: If the journal cannot be written.
        duckdb.Error: If the file cannot.
    """
    # Of events with the same id, the first one counts.
    events = {event.event_id: event for batch in reversed(batches) for event in reversed(batch)}
    try:
        connection.begin()
        journal.begin(connection)
        new = append(connection, [event for batch in batches for event in batch])
        last = max(new.values()) if new else last_sequence(connection)
        # Before the commit, so that the journal holds every event that is ever acknowledged.
        journal.append([events[event_id] for event_id in sorted(new, key=new.__getitem__)])
        connection.commit()
    except BaseException as error:
        with suppress(duckdb.Error):  # the connection may be past use; it is closed soon
            connection.rollback()
        if isinstance(error, STATEMENT_ERRORS):
            kind = next(iter(events.values())).kind
            raise EventError(f"cannot record {kind}: {first_line(error)}; correct the event") from error
        raise
    acks = []
    for batch in batches:  # what two senders sent was new for the first one
        acks.append(Ack(sum(new.pop(event_id, 0) > 0 for event_id in {event.event_id for event in batch}), last))
    return acks


def last_sequence(connection: duckdb.DuckDBPyConnection) -> int:
    """Read the number of the last event in the database `db`."""
    ((number,),) = connection.execute("SELECT coalesce(max(sequence), 0) FROM db.store.events").fetchall()
    return int(number)
