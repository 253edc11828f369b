"""Hands the result of a user's query to Arrow, pandas or Polars, without a Python object for each value."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import duckdb

from rankloom_registry.errors import MissingPackageError, QueryError
from rankloom_registry.query.sandbox import sandboxed

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow

_MAX_BYTES = 2 << 30


def arrow(connection: duckdb.DuckDBPyConnection, query: str, *, timeout_s: float) -> pyarrow.Table:
    """Run one query of the SELECT family.

    Args:
        connection: As for `sandbox.run_query`.
        query: One statement: SELECT, FROM, WITH, DESCRIBE or SHOW.
        timeout_s: How long the query may run, in seconds.

    Returns:
        A table: timestamps are in UTC, JSON is text.

    Raises:
        MissingPackageError: If pyarrow is not installed.
        QueryError: If it is another statement, or more than one, or it fails, or takes too long.
    """
    pa = require("pyarrow", "pyarrow")
    batches, size = [], 0
    with sandboxed(connection, query, timeout_s=timeout_s):
        reader = connection.sql(query).to_arrow_reader()
        for batch in reader:  # what is read so far is outside of DuckDB's own limit
            batches.append(batch)
            size += batch.nbytes
            if size > _MAX_BYTES:
                raise QueryError(f"the query gives more than {_MAX_BYTES >> 30} GiB; narrow it, or add a LIMIT")
        return _plain(pa.Table.from_batches(batches, reader.schema))


def pandas_frame(table: pyarrow.Table) -> pd.DataFrame:
    """Make a pandas frame of a table that `arrow` returned.

    Raises:
        MissingPackageError: If pandas is not installed.
    """
    require("pandas", "pandas")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def polars_frame(table: pyarrow.Table) -> pl.DataFrame:
    """Make a Polars frame of a table that `arrow` returned.

    Raises:
        MissingPackageError: If Polars is not installed.
    """
    frame: pl.DataFrame = require("polars", "rankloom[polars]").from_arrow(table)
    return frame


def require(module: str, requirement: str) -> Any:
    """Import an optional package, or say how to install it.

    Args:
        module: Its import name.
        requirement: What to give to `pip install`.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        importlib.import_module(module.partition(".")[0])
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{error}, which this needs; pip install '{requirement}'") from error
    return importlib.import_module(module)


def _plain(table: pyarrow.Table) -> pyarrow.Table:
    import pyarrow as pa

    # JSON is a type of its own to pyarrow, which pandas and Polars do not know.
    types = [kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind for kind in table.schema.types]
    return table.cast(pa.schema(zip(table.column_names, types, strict=True)))
