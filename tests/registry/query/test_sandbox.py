from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from rankloom_registry import QueryError, Registry
from rankloom_registry.query import sandbox


def test_a_query_reads_the_views(searched: Registry) -> None:
    assert searched.sql("select r, min(eval_loss) as best from adapters group by r order by r limit 2") == [
        {"r": 8, "best": 2.0},
        {"r": 16, "best": 1.5},
    ]
    assert searched.sql("from adapters select count(*) as n") == [{"n": 4}]
    assert searched.sql("with x as (from trials) select max(number) as n from x;") == [{"n": 3}]
    tables = {row["name"] for row in searched.sql("show tables")}
    assert {"adapters", "searches", "trials", "step_metrics", "bases", "aliases", "events"} <= tables
    assert searched.sql("describe aliases")[0]["column_name"] == "name"
    assert len(searched.sql("from events", limit=3)) == 3


def test_times_json_and_repeated_names_come_as_plain_values(searched: Registry) -> None:
    (row,) = searched.sql("select created_at, config, 1 as a, 2 as a, null as b from searches")
    assert isinstance(row["created_at"], datetime) and row["created_at"].tzinfo is not None
    assert row["config"] == {"space": "lora"}
    assert sorted(row.values(), key=repr)[:2] == [1, 2]


@pytest.mark.parametrize(
    "query",
    [
        "delete from store.adapters",
        "with x as (select 1) delete from store.adapters",
        "insert into store.settings values ('a', 'b')",
        "update store.searches set name = 'x'",
        "drop view adapters",
        "create table t (a integer)",
        "create temp table t (a integer)",
        "select 1; select 2",
        "select 1; delete from store.adapters",
        "from read_text('{secret}')",
        "from read_blob('{secret}')",
        "from read_csv('{secret}')",
        "from '{secret}'",
        "from glob('{folder}/*')",
        "from sniff_csv('{secret}')",
        "from query('from read_text(''{secret}'')')",
        "copy (select 1) to '{folder}/out.csv'",
        "copy adapters to '{folder}/out.csv'",
        "export database '{folder}/out'",
        "attach '{folder}/other.duckdb'",
        "detach db",
        "use memory",
        "pragma database_list",
        "call pragma_version()",
        "set enable_external_access = true",
        "reset lock_configuration",
        "install httpfs",
        "load httpfs",
        "prepare p as select 1",
        "explain analyze select 1",
        "begin",
        "checkpoint",
        "from searched",
        "import database '{folder}/evil'",
        "from '{registry}'",
        "describe '{registry}'",
        "describe from '{registry}'",
        "summarize '{registry}'",
        "with x as (from '{registry}') from x",
        "from read_blob('{registry}')",
        "select (select count(*) from read_blob('{registry}'))",
        "select 1 where exists (from read_blob('{registry}'))",
        "select 1 order by (select 1 from read_blob('{registry}'))",
        "select 1 limit (select 1 from read_blob('{registry}'))",
        "from adapters, lateral (from read_blob('{registry}'))",
        "from adapters join read_blob('{registry}') on true",
        "from range(1) union all select 1 from read_blob('{registry}')",
        "with recursive x(a) as (select 1 union select 2 from read_blob('{registry}')) from x",
        "select list(1) over (order by (select 1 from read_blob('{registry}')))",
        "from (values ((select 1 from read_blob('{registry}'))))",
        "from system.main.read_blob('{registry}')",
        "from read_duckdb('{registry}')",
        "from query_table('{registry}')",
        "from json_execute_serialized_sql(json_serialize_sql('select 1'))",
        "from enable_logging(storage = 'file', storage_path = '{folder}/log')",
        "from enable_profiling(save_location = '{folder}/profile')",
        "from checkpoint()",
        "from pandas_scan(1, 2, 3)",
        "from arrow_scan(1, 2, 3)",
        "with x as (insert into memory.main.t values (1) returning a) from x",
        "pragma show_tables",
        "select ?",
        "select '\udcff'",
        "select " + "(" * 5000 + "1" + ")" * 5000,
        "select " + "abs(" * 900 + "1" + ")" * 900,
        "select now() + interval 100000 years",
        "select [created_at] from adapters",
        "select (repeat('[', 20000) || repeat(']', 20000))::json",
        "from range(5000000)",
        "select",
        "",
        ";",
    ],
)
def test_anything_else_is_refused(searched: Registry, tmp_path: Path, query: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("secret\n")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "schema.sql").write_text("select 1;")
    (tmp_path / "evil" / "load.sql").write_text("")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QueryError):
        searched.sql(query.format(secret=secret, folder=tmp_path, registry=searched.path))
    assert sorted(tmp_path.iterdir()) == before
    assert len(searched.adapters()) == 4


def test_a_query_that_takes_too_long_is_ended(searched: Registry) -> None:
    started = time.monotonic()
    with pytest.raises(QueryError, match=r"0\.2 s"):
        searched.sql("select sum(hash(a.range, b.range)) from range(10000000) a, range(10000000) b", timeout_s=0.2)
    assert time.monotonic() - started < 30
    assert searched.searches()


def test_no_function_in_from_reaches_a_file(searched: Registry, tmp_path: Path) -> None:
    """Every table function that this DuckDB has, with the path of a file; those of a new version too."""
    secret = tmp_path / "secret.csv"
    secret.write_text("b7d1c0\n")
    query = "select distinct function_name as name from duckdb_functions() where function_type like 'table%'"
    listed = searched.sql(query)
    before = sorted(tmp_path.iterdir())
    harmless = set()
    for name in [row["name"] for row in listed]:
        for path in (secret, searched.path):
            try:
                rows = searched.sql(f"from {name}('{path}')")
            except QueryError:
                continue
            harmless.add(name)
            assert "b7d1c0" not in repr(rows) and len(repr(rows)) < 1000
    assert len(listed) > 80 and harmless <= {"repeat"}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "query",
    [
        "from range(3)",
        "select unnest([1, 2])",
        "from unnest([1, 2])",
        "select count(*) from adapters a, json_each(a.params)",
        "from store.adapters",
        "from db.main.adapters",
        "describe adapters",
        "describe select 1",
        "summarize adapters",
        "show all tables",
        "show tables",
        "from information_schema.tables",
        "from duckdb_columns()",
        "values (1), (2)",
        "select r, rank() over (order by eval_loss) from adapters qualify rank() over (order by eval_loss) < 3",
        "from adapters pivot (min(eval_loss) for r in (8, 16))",
        "with recursive t(n) as (select 1 union all select n + 1 from t where n < 5) from t",
        'select 1 as "a b/c.d"',
        "-- a comment\nfrom adapters /* and another */",
        "select " + "1 + " * 200 + "1",
    ],
)
def test_what_reads_only_the_registry_runs(untouched: Registry, query: str) -> None:
    assert untouched.sql(query)


def test_a_name_in_a_message_is_not_sql(untouched: Registry) -> None:
    with pytest.raises(QueryError, match="cannot be a file"):
        untouched.sql("from 'other.duckdb'")
    with pytest.raises(QueryError, match=r"read_text\(\)"):
        untouched.sql("from read_text('x')")
    with pytest.raises(QueryError, match="VARCHAR"):
        untouched.sql("select [created_at] from adapters")
    with pytest.raises(QueryError, match="LIMIT"):
        untouched.sql("from range(2000000)")


def test_a_limit_is_no_reason_to_refuse(untouched: Registry) -> None:
    assert len(untouched.sql("from range(2000000)", limit=5)) == 5


LARGE = {
    "text": "select repeat('x', 2000) as t",
    "text in many rows": "select 'x' || range as t from range(2000)",
    "a blob": "select repeat('x', 2000)::blob as t",
    "JSON": "select ('[' || repeat('[],', 100) || '1]')::json as t",
    "a list": "select range(200) as t",
    "a list of lists": "select [range(200)] as t",
    "a list of structures": "select list({'a': range}) as t from range(50)",
    "a map": "select map(range(100), range(100)) as t",
    "beside nothing": "select null as a, repeat('x', 2000) as t, null::varchar as b",
    "a name in quotes": 'select repeat(\'x\', 2000) as "a ""b"',
    "an enum": "select 'x'::enum('x') as t from range(1000)",
}


@pytest.mark.parametrize("query", LARGE.values(), ids=LARGE)
def test_a_result_of_few_values_may_be_too_large_too(
    untouched: Registry, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    assert untouched.sql(query)
    monkeypatch.setattr(sandbox, "_MAX_BYTES", 1000)
    with pytest.raises(QueryError, match="narrow it"):
        untouched.sql(query)


def test_numbers_and_a_limit_keep_a_result_small(untouched: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_MAX_BYTES", 1000)
    numbers = "range, range / 7, range::decimal(18, 3), range::hugeint, range > 5, timestamptz '2026-01-01', null"
    assert len(untouched.sql(f"select {numbers} from range(5000)")) == 5000
    assert len(untouched.sql("select 'x' || range as t from range(2000)", limit=100)) == 100


def test_measuring_a_result_keeps_its_order(untouched: Registry) -> None:
    rows = untouched.sql("select lpad(range::varchar, 7, '0') as t from range(400000) order by t desc")
    assert [row["t"] for row in rows] == [f"{number:07}" for number in reversed(range(400_000))]
