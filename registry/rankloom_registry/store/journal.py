"""The journal: every recorded event as a line of JSON beside the file, from which the file can be made again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from rankloom_registry.errors import EventError, RegistryWriteError
from rankloom_registry.events.event import Event
from rankloom_registry.files import sync_folder
from rankloom_registry.jsontext import encode

_ROWS = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Log:
    """What a log of events holds.

    Attributes:
        events: In the order of its lines.
        settings: The registry's settings when the log was begun; a lane's log has none.
        torn: Lines that are no event: the last one of a process that was killed, or damage.
    """

    events: list[Event] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    torn: int = 0


class Journal:
    """The journal of a registry; only who has the turn to write may append to it."""

    def __init__(self, registry: Path) -> None:
        """Name the journal of a registry; it is made when something is recorded.

        Args:
            registry: The resolved path of the registry file.
        """
        self.path = registry.with_name(registry.name.removesuffix(".duckdb") + ".events.jsonl")

    def begin(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make the journal if there is none, with all that the attached file holds already.

        Raises:
            RegistryWriteError: If it cannot be written.
        """
        if not self.path.exists():
            self.write(connection)

    def write(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Write the journal anew, from what the attached file holds.

        Raises:
            RegistryWriteError: If it cannot be written; it is then as it was.
        """
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in _lines(connection))
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise self._refusal(error) from error
        finally:
            unfinished.unlink(missing_ok=True)

    def append(self, events: Sequence[Event]) -> None:
        """Append events and wait until they are on the disk.

        Raises:
            RegistryWriteError: If that fails.
        """
        if not events:
            return
        lines = "".join(event.to_json() + "\n" for event in events).encode()
        try:
            with self.path.open("a+b", buffering=0) as file:
                if (size := file.seek(0, os.SEEK_END)) and os.pread(file.fileno(), 1, size - 1) != b"\n":
                    lines = b"\n" + lines  # a writer was killed in the middle of a line, after which ours stand alone
                while lines:
                    lines = lines[file.write(lines) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refusal(error) from error

    def backwards(self, block: int = 1 << 16) -> Iterator[Event]:
        """Give the events from the last one to the first; lines that are none are left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            rest, end = b"", file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - block)
                rest = os.pread(file.fileno(), end - start, start) + rest
                end = start
                first, *whole = rest.split(b"\n")
                if not start:
                    whole.insert(0, first)
                for line in reversed(whole):
                    with suppress(EventError):
                        yield Event.from_json(line.decode(errors="replace"))
                rest = first

    def _refusal(self, error: OSError) -> RegistryWriteError:
        return RegistryWriteError(f"cannot write {self.path}: {error.strerror}; check the disk and the permissions")


def read_log(path: Path) -> Log:
    """Read a journal, or the log that a lane keeps.

    Args:
        path: The file; a missing one is an empty log.

    Returns:
        Its events and how many lines were torn.
    """
    log = Log()
    if not path.is_file():
        return log
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                log.events.append(Event.from_json(line))
            except EventError:
                if settings := _settings(line):
                    log.settings = settings
                else:
                    log.torn += 1
    return log


def recorded(connection: duckdb.DuckDBPyConnection) -> list[Event]:
    """Make the events again that the attached file holds, in the order in which they were recorded."""
    return [Event.from_json(line) for line in _rows(connection)]


def settings(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Read the settings of the attached file."""
    return dict(connection.execute("SELECT key, value FROM store.settings ORDER BY key").fetchall())


def _lines(connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    # Where the artifacts lie is no event, and would be lost with the file.
    yield encode({"settings": settings(connection)})
    yield from _rows(connection)


def _rows(connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    # Columns that later versions add go into the line as they are, as long as they say something.
    rows = connection.execute(
        'SELECT * EXCLUDE (sequence, subject) REPLACE (epoch_us("at") AS "at", payload::VARCHAR AS payload) '
        "FROM store.events ORDER BY sequence"
    )
    names = [column[0] for column in rows.description or ()]
    while block := rows.fetchmany(_ROWS):
        for row in block:
            line: dict[str, Any] = dict(zip(names, row, strict=True))
            payload = json.loads(line.pop("payload"))
            line["at"] = (_EPOCH + timedelta(microseconds=line["at"])).isoformat()
            yield encode({name: value for name, value in line.items() if value not in (None, "")} | payload)


def _settings(line: str) -> dict[str, str] | None:
    try:
        found = json.loads(line)["settings"]
        return {str(key): str(value) for key, value in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
