from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from rankloom_registry import MissingPackageError, QueryError, Registry

QUERY = "select adapter_id, r, eval_loss, created_at, params, aliases, status = 'available' as kept from adapters"
QUERY += " order by r"


def test_arrow_has_a_type_for_each_column(untouched: Registry) -> None:
    table = untouched.arrow(QUERY)
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    assert types["r"] == pa.int32() and types["eval_loss"] == pa.float64() and types["kept"] == pa.bool_()
    assert types["created_at"] == pa.timestamp("us", "UTC") and types["params"] == pa.string()
    rows = table.to_pylist()
    expected = untouched.sql(QUERY)
    assert [json.loads(row.pop("params")) for row in rows] == [row.pop("params") for row in expected]
    assert rows == expected and len(rows) == 4


def test_pandas_keeps_time_zones_and_missing_values(untouched: Registry) -> None:
    frame = untouched.pandas(QUERY)
    assert list(frame["r"]) == [8, 16, 32, 64]
    assert frame["eval_loss"].isna().tolist() == [False, False, False, True]
    assert frame["created_at"].dt.tz is not None and frame["created_at"][0].utcoffset().total_seconds() == 0
    assert frame["created_at"][0].to_pydatetime() == untouched.adapter("first-0").created_at
    assert json.loads(frame["params"][0])["r"] == 8


def test_polars_has_the_same(untouched: Registry) -> None:
    polars = pytest.importorskip("polars", reason="the extra 'polars' is not installed")
    frame = untouched.polars(QUERY)
    assert frame["r"].to_list() == [8, 16, 32, 64] and frame["eval_loss"].null_count() == 1
    assert frame.schema["created_at"] == polars.Datetime("us", "UTC") and frame.schema["params"] == polars.String
    assert frame["created_at"][0].astimezone(UTC) == untouched.adapter("first-0").created_at


def test_no_rows_have_columns_too(untouched: Registry) -> None:
    table = untouched.arrow("from adapters where r < 0")
    assert table.num_rows == 0 and "eval_loss" in table.column_names
    assert untouched.pandas("from adapters where r < 0").empty


def test_the_year_of_a_timestamp_does_not_matter_to_arrow(untouched: Registry) -> None:
    table = untouched.arrow("select '290000-01-01'::timestamptz as a, [created_at] as b from adapters")
    assert table["b"].to_pylist()[0][0].date() <= datetime.now(UTC).date()


@pytest.mark.parametrize(
    "query", ["delete from store.adapters", "from read_text('/etc/hostname')", "select", "select x"]
)
def test_what_sql_refuses_is_refused(untouched: Registry, query: str) -> None:
    for read in (untouched.arrow, untouched.pandas, untouched.polars):
        with pytest.raises(QueryError):
            read(query)


def test_a_query_that_takes_too_long_is_ended(untouched: Registry) -> None:
    endless = "select sum(hash(a.range, b.range)) from range(10000000) a, range(10000000) b"
    with pytest.raises(QueryError, match=r"0\.2 s"):
        untouched.arrow(endless, timeout_s=0.2)
    with pytest.raises(QueryError, match=r"0\.2 s"):
        untouched.arrow("select hash(a.range, b.range) as h from range(100000) a, range(10000000) b", timeout_s=0.2)


@pytest.mark.parametrize("package", ["pyarrow", "pandas", "polars"])
def test_a_missing_package_is_named(untouched: Registry, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    read = untouched.arrow if package == "pyarrow" else getattr(untouched, package)
    with pytest.raises(MissingPackageError, match=f"pip install '.*{package}"):
        read("from adapters")
