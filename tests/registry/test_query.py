from __future__ import annotations

import pytest

from rankloom_registry import QueryError, Registry

REFUSED = [
    "r < 8; drop table store.adapters",
    "r < 8 union select 1",
    "r < 8 order by r",
    "r < 8 limit 1",
    "r in (select 1)",
    "(select 1) = 1",
    "exists(select 1)",
    "r = (from range(3))",
    "name = read_text('/etc/hostname')",
    "name = getenv('HOME')",
    "name::varchar = 'a'",
    "cast(r as integer) = 1",
    "columns('r') < 1",
    "case when r then 1 end",
    "lambda x: x",
    "r = ?",
    "r = $1",
    "adapters.r < 2",
    "name like 'a' escape 'b'",
    "r between symmetric 1 and 2",
    "r in ()",
    "select 1",
    "*",
    "",
    " ",
    "r <",
    "(" * 900 + "r" + ")" * 900 + " < 1",
    "not " * 900 + "r",
    "r < 1 or " * 600 + "r < 1",
    "r = 'x'",
    "r < " + "9" * 60,
    "aliases = 'best'",
    "name",
]


@pytest.mark.parametrize("where", REFUSED, ids=lambda where: where[:30])
def test_what_is_not_a_comparison_is_refused(untouched: Registry, where: str) -> None:
    with pytest.raises(QueryError):
        untouched.adapters(where=where)
    assert len(untouched.adapters()) == 4


@pytest.mark.parametrize(
    "order_by", ["r; drop table x", "1", "random()", "(select 1)", "r limit 1", "r desc desc", "", "r,", "r -- x"]
)
def test_an_ordering_is_columns(untouched: Registry, order_by: str) -> None:
    with pytest.raises(QueryError):
        untouched.adapters(order_by=order_by)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1", True])
def test_a_limit_is_a_positive_whole_number(untouched: Registry, limit: object) -> None:
    with pytest.raises(QueryError, match="limit"):
        untouched.adapters(limit=limit)  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="limit"):
        untouched.sql("from adapters", limit=limit)  # type: ignore[arg-type]


def test_an_unknown_column_names_the_nearest(untouched: Registry) -> None:
    with pytest.raises(QueryError, match=r"'eval_los'.*nearest is 'eval_loss'"):
        untouched.adapters(where="eval_los < 2")
    with pytest.raises(QueryError, match="nearest is 'learning_rate'"):
        untouched.adapters(order_by="learning_rates")


def test_text_is_a_value_and_never_sql(untouched: Registry) -> None:
    assert untouched.adapters(where="name = 'x'' or 1 = 1 --'") == []
    assert untouched.adapters(where="name = 'first-1' -- and r = 0") == untouched.adapters(where="r = 16")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("not r = 8 and r < 64", [16, 32]),
        ("(not (r = 8)) = true and r < 64", [16, 32]),
        ("r = 8 or r = 16 and eval_loss < 1", [8]),
        ("(r = 8 or r = 16) and eval_loss < 1.6", [16]),
        ("-r < -32 or - -r = 8", [8, 64]),
        ("eval_loss is not null and r not in (8, 16)", [32]),
        ("name ilike 'FIRST-_' and eval_loss is null", [64]),
    ],
)
def test_precedence_is_that_of_sql(untouched: Registry, where: str, expected: list[int]) -> None:
    assert [adapter.r for adapter in untouched.adapters(where=where, order_by="r")] == expected
    assert [row["r"] for row in untouched.sql(f"select r from adapters where {where} order by r")] == expected
