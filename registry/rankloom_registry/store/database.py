"""Opens the database file for the length of one operation, and reads rows from it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from rankloom_registry.errors import (
    RegistryBusyError,
    RegistryError,
    RegistryFormatError,
    RegistryWriteError,
)

Rows = list[dict[str, Any]]

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    # Nothing is ever fetched from the network because of a query.
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # Otherwise a spill makes a folder `.tmp` wherever the process was started.
    "temp_directory": "",
    # An operation is short; starting a thread for each core of a large machine would take longer than it.
    "threads": min(4, os.cpu_count() or 1),
}
_SETUP = "SET TimeZone = 'UTC'; SET python_enable_replacements = false"
# What a statement or its values did wrong; every other error of DuckDB comes from the file, the disk or the memory.
STATEMENT_ERRORS = (
    duckdb.DataError,
    duckdb.IntegrityError,
    duckdb.InterruptException,
    duckdb.NotSupportedError,
    duckdb.PermissionException,
    duckdb.ProgrammingError,
)
_MOMENT = "TIMESTAMP WITH TIME ZONE"


# The types of which every value has the same size.
_FIXED = re.compile(r"BOOLEAN|\w*INT(EGER)?|FLOAT|DOUBLE|DECIMAL[^[]*|DATE|TIME[^[]*|INTERVAL|UUID")
_TOO_LARGE = "the result has too much text, or too large lists; narrow it, or add a LIMIT"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@contextmanager
def attach(path: Path, *, write: bool, timeout_s: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Attach a database file as `db`, for a caller that has its turn.

    Args:
        path: The file; one that is missing is made when `write`.
        write: Whether it may be changed.
        timeout_s: The longest wait for a program that does not know the turns, in seconds.

    Yields:
        A connection whose default database is the file's.

    Raises:
        RegistryBusyError: If another program kept it open.
        RegistryFormatError: If the file is not a DuckDB database.
        RegistryError: If it cannot be read; `RegistryWriteError` if it cannot be written.
    """
    # DuckDB 2.0 reads the header before it takes its lock, unless the file is attached with its type: another
    # process's commit in between is then lost without an error. So never connect(path), and never a plain ATTACH.
    target = str(path).replace("'", "''")
    mode = "TYPE duckdb" if write else "TYPE duckdb, READ_ONLY"
    connection = _instance()
    fit = False
    try:
        _retry(connection, f"ATTACH '{target}' AS db ({mode})", path, timeout_s)
        connection.execute("USE db")
        yield connection
        # One that wrote is closed, and one that failed: nothing of them can then still have the file open.
        fit = not write and _detached(connection)
    except STATEMENT_ERRORS:
        raise
    except duckdb.Error as error:
        raise _translated(error, path, write) from error
    finally:
        if fit:
            _idle.append(connection)
        else:
            connection.close()


def _instance() -> duckdb.DuckDBPyConnection:
    """Give an instance of DuckDB without a file: a new one takes ten times as long as attaching a file to one."""
    with suppress(IndexError):
        return _idle.pop()
    connection = duckdb.connect(":memory:", config=_CONFIG)
    connection.execute(_SETUP)
    return connection


def _detached(connection: duckdb.DuckDBPyConnection) -> bool:
    try:
        connection.execute("USE memory; DETACH db")
    except duckdb.ConnectionException:  # closed by who made it unfit for others
        return False
    return True


def _close_idle() -> None:
    while _idle:
        _idle.pop().close()


_idle: list[duckdb.DuckDBPyConnection] = []
os.register_at_fork(before=_close_idle)  # a child would have them without their threads, and abort when it ends


def _retry(connection: duckdb.DuckDBPyConnection, statement: str, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute(statement)
            return
        except duckdb.IOException as error:  # a program that does not know the turns, such as the DuckDB shell
            if "Could not set lock" not in str(error):
                raise
            if time.monotonic() >= deadline:
                reason = first_line(error)
                raise RegistryBusyError(f"{path} is open in another program: {reason}; close it there") from error
        time.sleep(0.05)


def first_line(error: duckdb.Error) -> str:
    """What DuckDB says, without the query that it quotes below."""
    return str(error).splitlines()[0]


def _translated(error: duckdb.Error, path: Path, write: bool) -> RegistryError:
    message = first_line(error)
    if "not a valid DuckDB" in message:
        return RegistryFormatError(f"{path} is not a DuckDB database; give the path of a registry, or of a new file")
    if "version number" in message:
        return RegistryFormatError(f"{path} was written by another version of DuckDB: {message}; use that version")
    kind = RegistryWriteError if write else RegistryError
    return kind(f"cannot {'write' if write else 'read'} {path}: {message}; check the disk and the permissions")


def fetch(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    parameters: Sequence[Any] = (),
    limit: int | None = None,
    most_bytes: int | None = None,
) -> Rows:
    """Run a query that returns rows.

    Args:
        connection: An open connection.
        query: One statement of the SELECT family, `?` where a parameter goes.
        parameters: The values.
        limit: The most rows to return; None for all.
        most_bytes: The most bytes that the text in these rows may have; what becomes many Python objects, such as JSON
            and lists, counts four times. None for any.

    Returns:
        A dictionary a row: timestamps are aware and in UTC, JSON is parsed.

    Raises:
        duckdb.InvalidInputException: If they have more than `most_bytes`.
    """
    relation = connection.sql(query, params=list(parameters))
    kinds = [str(kind) for kind in relation.types]
    # The columns of a projection have distinct names. DuckDB's Python client needs the package pytz to hand out a
    # TIMESTAMPTZ; microseconds since the epoch say the same exactly.
    names = relation.project("*").columns
    moments = [_quoted(name) for name, kind in zip(names, kinds, strict=True) if kind == _MOMENT]
    replaced = ", ".join(f"epoch_us({name}) AS {name}" for name in moments)
    relation = relation.project(f"* REPLACE ({replaced})" if moments else "*")
    if limit is not None:
        relation = relation.limit(limit)
    sizes = [_size(name, kind) for name, kind in zip(names, kinds, strict=True) if not _FIXED.fullmatch(kind)]
    if most_bytes is not None and sizes:
        # Before any of it is a Python object; a running sum, as one over all rows could change their order.
        more = f"sum({' + '.join(sizes)}) OVER (ROWS UNBOUNDED PRECEDING) > {most_bytes}"
        relation = relation.project(f"*, CASE WHEN {more} THEN error('{_TOO_LARGE}') END")
    return [dict(zip(names, map(_value, kinds, row), strict=True)) for row in relation.fetchall()]


def select(
    connection: duckdb.DuckDBPyConnection, columns: Mapping[str, bool], query: str, parameters: Sequence[Any] = ()
) -> Rows:
    """Run `SELECT columns query` as `fetch` would.

    The database plans it once: what `fetch` has to ask it first, the caller knows.

    Args:
        connection: An open connection.
        columns: The names, in order, and whether each is a TIMESTAMPTZ.
        query: What follows the columns, from FROM on; `?` where a parameter goes.
        parameters: The values.

    Returns:
        A dictionary a row: timestamps are aware and in UTC, JSON is parsed.
    """
    terms = (f"epoch_us({_quoted(name)})" if moment else _quoted(name) for name, moment in columns.items())
    answer = connection.execute(f"SELECT {', '.join(terms)} {query}", parameters)
    kinds = [
        _MOMENT if moment else str(kind)
        for moment, (_, kind, *_) in zip(columns.values(), answer.description, strict=True)
    ]
    return [dict(zip(columns, map(_value, kinds, row), strict=True)) for row in answer.fetchall()]


def _size(name: str, kind: str) -> str:
    """The SQL for the bytes of a column's values, as `fetch` counts them."""
    match kind:
        case "VARCHAR":
            size = f"strlen({_quoted(name)})"
        case "BLOB":
            size = f"octet_length({_quoted(name)})"
        case _ if _FIXED.fullmatch(kind.removesuffix("[]")):
            size = f"32 * len({_quoted(name)})"  # as text it would be large itself
        case _:
            size = f"4 * strlen({_quoted(name)}::VARCHAR)"
    return f"coalesce({size}, 0)"


def _value(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind == _MOMENT:
        return _EPOCH + timedelta(microseconds=value)
    return json.loads(value) if kind == "JSON" else value


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
