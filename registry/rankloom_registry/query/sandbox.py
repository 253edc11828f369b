"""Runs a user's own query so that it can read the registry and nothing else."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import duckdb

from rankloom_registry.errors import QueryError, RegistryError
from rankloom_registry.query.filters import check_limit
from rankloom_registry.store.database import STATEMENT_ERRORS, Rows, fetch, first_line

# A read-only database alone still lets read_text() and COPY TO reach the disk. Even then DuckDB lets a query read the
# files that are attached, by path, and any such open() drops the lock on them: hence the rules for FROM below.
_LOCKDOWN = "SET memory_limit = '2GB'; SET enable_external_access = false; SET lock_configuration = true"
_STATEMENTS = "SELECT, FROM, WITH, DESCRIBE or SHOW"
_OF_THE_QUERY = (*STATEMENT_ERRORS, duckdb.OutOfMemoryException)
_MAX_VALUES = 5_000_000  # half a GB as Python objects, where a row weighs as much as four of its values
_MAX_BYTES = 512 << 20  # of text, which is up to four times that as Python objects
# Others read files, take pointers into memory, run SQL given as text, or change settings.
_TABLE_FUNCTIONS = frozenset(
    {"duckdb_columns", "duckdb_functions", "duckdb_tables", "duckdb_types", "duckdb_views"}
    | {"generate_series", "json_each", "json_tree", "range", "repeat", "unnest"}
)
_TABLE = re.compile(r'"?\w*"?')  # a path or the name of a file, which DuckDB would read, has other characters


def run_query(connection: duckdb.DuckDBPyConnection, query: str, *, limit: int | None, timeout_s: float) -> Rows:
    """Run one query of the SELECT family.

    Args:
        connection: A connection to an instance of its own, with the registry attached read-only as its default
            database; it is closed afterwards, as it is good for nothing else.
        query: One statement: SELECT, FROM, WITH, DESCRIBE or SHOW.
        limit: The most rows to return; None for all.
        timeout_s: How long the query may run, in seconds.

    Returns:
        A dictionary a row.

    Raises:
        QueryError: If it is another statement, or more than one, or it fails, or takes too long, or gives too much.
    """
    check_limit(limit)
    with sandboxed(connection, query, timeout_s=timeout_s):
        most = _MAX_VALUES // (4 + len(connection.sql(query).columns))
        rows = fetch(connection, query, limit=min(limit or most + 1, most + 1), most_bytes=_MAX_BYTES)
    if len(rows) > most:
        raise QueryError(f"the query gives more than {most} rows; add a LIMIT, or read it with Registry.arrow")
    return rows


@contextmanager
def sandboxed(connection: duckdb.DuckDBPyConnection, query: str, *, timeout_s: float) -> Iterator[None]:
    """Check a query, lock the connection down while the body runs it, and close it.

    Args:
        connection: As for `run_query`.
        query: As for `run_query`.
        timeout_s: How long the body may take, in seconds.

    Raises:
        QueryError: If the query is not allowed, or what the body does with it fails or takes too long.
    """
    connection.execute(_LOCKDOWN)
    with closing(connection), _deadline(connection, timeout_s) as passed:
        try:
            _check(connection, query)
            yield
        except RegistryError:
            raise
        except (duckdb.Error, OSError, OverflowError, RecursionError, ValueError) as error:
            if passed.is_set():
                raise QueryError(f"the query ran for more than {timeout_s:g} s and was ended; narrow it") from error
            if isinstance(error, duckdb.Error) and not isinstance(error, _OF_THE_QUERY):
                raise  # of the file or the disk
            raise QueryError(_reason(error)) from error


@contextmanager
def _deadline(connection: duckdb.DuckDBPyConnection, timeout_s: float) -> Iterator[threading.Event]:
    done, passed = threading.Event(), threading.Event()

    def watch() -> None:
        if done.wait(timeout_s):
            return
        passed.set()
        while True:  # an interrupt that meets the connection between two statements is forgotten
            connection.interrupt()
            if done.wait(0.05):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield passed
    finally:
        done.set()
        watcher.join()


def _reason(error: Exception) -> str:
    if not isinstance(error, duckdb.Error):  # the year 290000; JSON nested 10,000 deep; what Arrow says
        said = " ".join(str(error).split())[:200]
        return f"the result has no form in Python ({said}); cast it to VARCHAR"
    # DuckDB's Python client needs the package pytz for these, and the registry does not.
    hint = "; cast what holds timestamps to VARCHAR" if "pytz" in str(error) else ""
    return f"the query failed: {first_line(error)}{hint}"


def _check(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Raise a `QueryError` unless the query is one statement that reads tables only.

    DuckDB itself parses it, so that nothing is read otherwise here than when it runs. Parsing does not go through
    `extract_statements`, which already reads files for IMPORT DATABASE.
    """
    rule = f"a query is one {_STATEMENTS} statement"
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise QueryError(f"cannot read the query: {error}; write it as UTF-8") from None
    ((text,),) = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    try:
        tree = json.loads(text)
    except RecursionError:
        raise QueryError("the query is nested too deeply; simplify it") from None
    if tree["error"]:
        raise QueryError(f"{rule}; {tree['error_message']}")
    if len(tree["statements"]) != 1:
        raise QueryError(f"{rule}; got {len(tree['statements'])}")
    remaining: list[Any] = [tree]
    while remaining:
        node = remaining.pop()
        if isinstance(node, dict):
            _check_source(node)
            remaining += node.values()
        elif isinstance(node, list):
            remaining += node


def _check_source(node: dict[str, Any]) -> None:
    if node.get("type") == "TABLE_FUNCTION":
        function = node["function"].get("function_name")
        if function not in _TABLE_FUNCTIONS:
            allowed = ", ".join(sorted(_TABLE_FUNCTIONS))
            raise QueryError(f"FROM takes tables, views and the functions {allowed}; got {function}()")
    table = node.get("table_name")
    if isinstance(table, str) and not _TABLE.fullmatch(table):
        raise QueryError(f"the name of a table is letters, digits and '_'; got {table!r}; it cannot be a file")
