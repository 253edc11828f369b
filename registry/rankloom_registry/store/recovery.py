"""After a death: takes over what a killed program left, and makes a registry again from its logs.

DuckDB 2.0 refuses a write-ahead log with a damaged entry, but opens one with a damaged head as if it were empty, and
removes it afterwards. So whoever finds a log, which every orderly end removes, compares the file with the journal.
"""

from __future__ import annotations

import heapq
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path

import duckdb

from rankloom_registry.errors import (
    RegistryBusyError,
    RegistryError,
    RegistryFormatError,
    RegistryNotFoundError,
    RegistryRecoveredWarning,
    RegistryWriteError,
)
from rankloom_registry.events.event import Event
from rankloom_registry.events.fold import append
from rankloom_registry.files import sync_folder
from rankloom_registry.store import schema
from rankloom_registry.store.database import STATEMENT_ERRORS, attach
from rankloom_registry.store.journal import Journal, read_log, recorded, settings
from rankloom_registry.store.locking import turn

_BATCH = 500  # events of one transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildReport:
    """What a registry was made of again.

    Attributes:
        path: The registry file.
        events: How many events it holds now.
        from_logs: How many of them only the logs of lanes held.
        torn: Lines that could not be read.
        left_out: What could not be recorded again, each with the reason.
        set_aside: Where the former file lies, if there was one.
    """

    path: Path
    events: int
    from_logs: int
    torn: int
    left_out: tuple[str, ...]
    set_aside: Path | None


def wal_path(registry: Path) -> Path:
    """Where DuckDB keeps the write-ahead log of a file that is open, or was when its program died."""
    return registry.with_name(registry.name + ".wal")


def died_open(registry: Path) -> bool:
    """Whether a program died with the registry open, or while it recovered it; asked by who has the turn."""
    return any(path.exists() and path.stat().st_size for path in (wal_path(registry), _recovering(registry)))


def recover(path: Path, *, timeout_s: float) -> str:
    """Replay the write-ahead log or set it aside, and record again what the journal knows and the file does not.

    Args:
        path: The registry file, of which the caller has the turn to write.
        timeout_s: The longest wait for a program that does not know the turns, in seconds.

    Returns:
        What the user should be told; nothing where the log gave everything back.

    Raises:
        RegistryError: If the file cannot be opened without its log either; both are then as they were.
    """
    wal, kept = wal_path(path), _recovering(path)
    try:
        if not kept.exists():  # otherwise a recovery died, and this is the log that it began with
            unfinished = kept.with_name(kept.name + ".tmp")
            shutil.copy2(wal, unfinished)
            unfinished.rename(kept)
    except OSError as error:
        raise RegistryWriteError(f"cannot recover {path}: {error.strerror}; check the disk and permissions") from error
    reason = ""
    try:
        found = _catch_up(path, timeout_s)
    except RegistryBusyError:
        kept.unlink()
        raise
    # DuckDB has many ways to say that it cannot replay a log; what counts is that it can open the file without it.
    except (RegistryError, duckdb.Error) as error:
        reason = str(error).splitlines()[0]
        wal.unlink(missing_ok=True)
        try:
            found = _catch_up(path, timeout_s)
        except (RegistryError, duckdb.Error):
            kept.rename(wal)
            raise error from None
    if not reason and not found:
        kept.unlink()
        return ""
    broken = free_name(wal, "broken")
    kept.rename(broken)
    sync_folder(path.parent)
    lost = f"could not be replayed ({reason}): {found} events" if reason else f"lacked the last {found} events, which"
    return (
        f"a program died while it had {path} open, and its write-ahead log {lost} were recorded again from the "
        f"journal; the log lies in {broken}"
    )


def tell(note: str) -> None:
    """Tell the user what was recovered."""
    warnings.warn(note, RegistryRecoveredWarning, stacklevel=2)


def rebuild(path: Path, *, runs: Sequence[Path] = (), wait_s: float = 60.0) -> RebuildReport:
    """Make a registry again from its journal, what can still be read of its file, and the logs of lanes.

    Args:
        path: The resolved path of the registry file, which may be missing or damaged; it is set aside.
        runs: Folders of run folders, if not only the one beside the file.
        wait_s: The longest wait for other programs, in seconds.

    Returns:
        What was found. Another rebuild finds the same.

    Raises:
        RegistryNotFoundError: If there is nothing to make it from.
        RegistryBusyError: If a search or another program kept the registry for too long.
        RegistryWriteError: If the new file cannot be written.
    """
    if not path.parent.is_dir():
        raise RegistryNotFoundError(f"there is no folder {path.parent}; give the path of the registry")
    with turn(path, write=True, timeout_s=wait_s):
        journal = Journal(path)
        log = read_log(journal.path)
        held, held_settings = _held(path, wait_s)
        lanes = [read_log(file) for file in _lane_logs([path.with_suffix(".runs"), *runs])]
        if not (log.events or held_settings):
            raise RegistryNotFoundError(f"there is nothing to make {path} from: no file, and no {journal.path.name}")
        known = {event.event_id for event in log.events}
        rescued = [event for event in held if event.event_id not in known]
        known.update(event.event_id for event in rescued)
        logged = {event.event_id: event for lane in lanes for event in lane.events if event.event_id not in known}
        # In the journal's order; what it lacks comes in by time, so that a trial is begun before its search ends.
        events = heapq.merge(log.events, rescued, sorted(logged.values(), key=attrgetter("at")), key=attrgetter("at"))
        unfinished = path.with_name(path.name + ".new")
        for leftover in (unfinished, wal_path(unfinished)):
            leftover.unlink(missing_ok=True)
        with attach(unfinished, write=True, timeout_s=wait_s) as connection:
            schema.migrate(connection, path, path.name.removesuffix(".duckdb") + ".artifacts")
            for key, value in (log.settings | held_settings).items():
                connection.execute("INSERT OR REPLACE INTO store.settings VALUES (?, ?)", [key, value])
            left_out = fold_all(connection, list(events))
            ids = {row[0] for row in connection.execute("SELECT event_id FROM store.events").fetchall()}
            if rescued or logged or log.torn or left_out or not log.events:
                # In the order in which it was folded, so that another rebuild finds the same.
                if journal.path.exists():
                    shutil.copy2(journal.path, free_name(journal.path, "before-rebuild"))
                journal.write(connection)
        set_aside = _set_aside(path)
        unfinished.rename(path)
        sync_folder(path.parent)
    return RebuildReport(
        path=path,
        events=len(ids),
        from_logs=len(ids & logged.keys()),
        torn=log.torn + sum(lane.torn for lane in lanes),
        left_out=tuple(left_out),
        set_aside=set_aside,
    )


def fold_all(connection: duckdb.DuckDBPyConnection, events: Sequence[Event]) -> list[str]:
    """Record events, also where some of them cannot be; names those, with the reason."""
    late: list[Event] = []
    for start in range(0, len(events), _BATCH):
        late += [event for event, _ in _fold(connection, events[start : start + _BATCH])]
    # What came before the event that it speaks of, as clocks differ, is recorded at the end.
    return [f"{event.kind} {event.subject}: {reason}" for event, reason in _fold(connection, late)]


def _fold(connection: duckdb.DuckDBPyConnection, events: Sequence[Event]) -> list[tuple[Event, str]]:
    if not events:
        return []
    connection.begin()
    try:
        append(connection, events)
        connection.commit()
        return []
    except (RegistryError, *STATEMENT_ERRORS) as error:
        connection.rollback()
        if len(events) == 1:
            return [(events[0], str(error).splitlines()[0])]
    half = len(events) // 2
    return _fold(connection, events[:half]) + _fold(connection, events[half:])


def _catch_up(path: Path, timeout_s: float) -> int:
    """Open the file, which replays its log, and record what the journal's end has more; how much that was."""
    with attach(path, write=True, timeout_s=timeout_s) as connection:
        missing: list[Event] = []
        if _is_current(connection, path):
            for event in Journal(path).backwards():
                query = "SELECT 1 FROM store.events WHERE event_id = ?"
                if connection.execute(query, [event.event_id]).fetchall():
                    break  # a log is lost from some point on, never before
                missing.append(event)
        return len(missing) - len(fold_all(connection, missing[::-1]))


def _is_current(connection: duckdb.DuckDBPyConnection, path: Path) -> bool:
    try:
        return schema.applied(connection, path) == list(schema.MIGRATIONS)
    except RegistryFormatError:  # somebody else's file, or a newer one: that is for who opens it to say
        return False


def _held(path: Path, wait_s: float) -> tuple[list[Event], dict[str, str]]:
    """What the file still says, if it can be opened: its events and its settings."""
    if not path.exists():
        return [], {}
    try:
        if died_open(path) and (note := recover(path, timeout_s=wait_s)):
            tell(note)
        with attach(path, write=False, timeout_s=wait_s) as connection:
            return recorded(connection), settings(connection)
    except RegistryBusyError:
        raise
    except (RegistryError, duckdb.Error):  # planned: a file beyond reading is what the journal is for
        return [], {}


def _lane_logs(runs: Sequence[Path]) -> Iterator[Path]:
    for folder in dict.fromkeys(folder.resolve() for folder in runs):
        yield from sorted(folder.glob("*/events/*.jsonl"))


def _set_aside(path: Path) -> Path | None:
    wal = wal_path(path)
    if not path.exists():
        return None
    aside = free_name(path, "before-rebuild")
    if wal.exists():
        wal.rename(wal_path(aside))
    path.rename(aside)
    return aside


def _recovering(registry: Path) -> Path:
    return registry.with_name(registry.name + ".wal.recovering")


def free_name(path: Path, what: str) -> Path:
    """A name beside a file for what is set aside and never removed."""
    return path.with_name(f"{path.name}.{what}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
