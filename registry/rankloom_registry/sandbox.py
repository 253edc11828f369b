"""Runs a user's own query so that it can read the registry and nothing else."""

from __future__ import annotations

import threading
from pathlib import Path

import duckdb

from rankloom_registry.database import STATEMENT_ERRORS, Rows, attached, fetch, first_line
from rankloom_registry.errors import QueryError
from rankloom_registry.query import check_limit

# A read-only database alone still lets read_text() and COPY TO reach the disk.
_LOCKDOWN = "SET memory_limit = '2GB'; SET enable_external_access = false; SET lock_configuration = true"


def run_query(path: Path, query: str, *, limit: int | None, timeout_s: float, wait_s: float) -> Rows:
    """Run one query of the SELECT family.

    Args:
        path: The resolved path of the registry file.
        query: One statement: SELECT, FROM, WITH, DESCRIBE or SHOW.
        limit: The most rows to return; None for all.
        timeout_s: How long the query may run, in seconds.
        wait_s: The longest wait for the registry, in seconds.

    Returns:
        A dictionary a row.

    Raises:
        QueryError: If it is another statement, or more than one, or it fails, or takes too long.
    """
    check_limit(limit)
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise QueryError(f"cannot read the query: {first_line(error)}") from error
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        got = ", ".join(kind.name for kind in kinds) or "nothing"
        raise QueryError(f"a query is one SELECT, FROM, WITH, DESCRIBE or SHOW statement; got {got}")
    with attached(path, write=False, timeout_s=wait_s) as connection:
        connection.execute(_LOCKDOWN)
        alarm = threading.Timer(timeout_s, connection.interrupt)
        alarm.start()
        try:
            return fetch(connection, query, limit=limit)
        except duckdb.InterruptException as error:
            raise QueryError(f"the query ran for more than {timeout_s:g} s and was ended; narrow it") from error
        except (*STATEMENT_ERRORS, duckdb.OutOfMemoryException) as error:
            raise QueryError(f"the query failed: {first_line(error)}") from error
        finally:
            alarm.cancel()
