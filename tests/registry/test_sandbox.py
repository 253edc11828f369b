from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from rankloom_registry import QueryError, Registry


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
        "select",
        "",
        ";",
    ],
)
def test_anything_else_is_refused(searched: Registry, tmp_path: Path, query: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("secret\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QueryError):
        searched.sql(query.format(secret=secret, folder=tmp_path))
    assert sorted(tmp_path.iterdir()) == before
    assert len(searched.adapters()) == 4


def test_a_query_that_takes_too_long_is_ended(searched: Registry) -> None:
    started = time.monotonic()
    with pytest.raises(QueryError, match=r"0\.2 s"):
        searched.sql("select sum(hash(a.range, b.range)) from range(10000000) a, range(10000000) b", timeout_s=0.2)
    assert time.monotonic() - started < 30
    assert searched.searches()
