from __future__ import annotations

from pathlib import Path

import pytest

from rankloom_dashboard.adapters import filters
from rankloom_dashboard.adapters.filters import Filter
from rankloom_registry import QueryError, Registry


def test_what_the_widgets_say_is_written_as_the_command_line_takes_it() -> None:
    wanted = Filter(
        among={"base_identity": ("a", "b'c"), "status": ("available",), "search_name": ()},
        least={"r": 8.0, "learning_rate": 3e-5},
        most={"eval_loss": 2.25},
        rest="name like 'x%'",
    )
    assert filters.write(wanted) == (
        "base_identity in ('a', 'b''c') and status = 'available' and r >= 8 and learning_rate >= 3e-05 "
        "and eval_loss <= 2.25 and name like 'x%'"
    )
    assert filters.write(Filter()) == ""


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("", Filter()),
        ("  ", Filter()),
        ("r <= 16", Filter(most={"r": 16.0})),
        ("R <= 16 AND STATUS = 'available'", Filter(most={"r": 16.0}, among={"status": ("available",)})),
        ("status in ('available', 'discarded')", Filter(among={"status": ("available", "discarded")})),
        ("eval_loss <= -1", Filter(most={"eval_loss": -1.0})),
        ("r <= 16 and r <= 8", Filter(most={"r": 16.0}, rest="r <= 8")),
        ("r < 16", Filter(rest="r < 16")),
        ("r = 8 or r = 16", Filter(rest="(r = 8 OR r = 16)")),
        ("r <= 8 and (r = 8 or seed = 1)", Filter(most={"r": 8.0}, rest="(r = 8 OR seed = 1)")),
        ("status = 8", Filter(rest="status = 8")),
        ("status not in ('available')", Filter(rest="NOT status IN ('available')")),
        ("r <= 'a'", Filter(rest="r <= 'a'")),
        ("eval_loss >= 1", Filter(rest="eval_loss >= 1")),
        ("r <= 1e999", Filter(rest="r <= 1e999")),
        ("x.r <= 8", Filter(rest="x.r <= 8")),
        ("r <", Filter(rest="r <")),
        ("((((", Filter(rest="((((")),
        ("'" * 5000, Filter(rest="'" * 5000)),
        ("not " * 900 + "r", Filter(rest="not " * 900 + "r")),
        ("status in (select 'available')", Filter(rest="status IN (SELECT 'available')")),
    ],
)
def test_a_text_is_taken_apart_as_far_as_the_widgets_go(where: str, wanted: Filter) -> None:
    assert filters.read(where) == wanted


@pytest.mark.parametrize(
    "where",
    [
        "r <= 16 and eval_loss < 2.3",
        "r = 32 or status = 'discarded'",
        "r >= 16 and (learning_rate >= 2e-4 or lora_dropout = 0) and not status = 'discarded'",
        "target_modules in ('all-linear', 'mlp') and eval_loss between 2 and 2.2 and trial_number is not null",
        "name ilike 'LORA%' and r != 8 and use_rslora = false",
        "learning_rate <= 0.00041",
        "eval_loss is null",
    ],
)
def test_a_text_means_the_same_when_it_is_written_again(made_once, where: str) -> None:
    again = filters.write(filters.read(where))
    with Registry.open(made_once.path) as registry:
        assert registry.adapters(again) == registry.adapters(where)
        assert filters.read(again) == filters.read(filters.write(filters.read(again)))


def test_a_text_that_is_refused_is_refused_again(made_once) -> None:
    for where in (
        "r <",
        "status in (select 'available')",
        "rank <= 8",
        "status <= 8 and r <= 8",
        "r <= 8; drop table x",
    ):
        with Registry.open(made_once.path) as registry, pytest.raises(QueryError):
            registry.adapters(filters.write(filters.read(where)))


def test_the_command_quotes_what_a_shell_would_read() -> None:
    told = filters.command("name = 'a b'", tag="x;y", order_by="r desc", limit=50, registry=Path("/a b/r.duckdb"))
    assert told == (
        """rankloom adapters list --where 'name = '"'"'a b'"'"'' --tag 'x;y' --order-by 'r desc' --limit 50 """
        "--registry '/a b/r.duckdb'"
    )
    assert "--where" not in filters.command("", tag=None, order_by="r", limit=50, registry=Path("r.duckdb"))
