from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rankloom_registry import (
    AdapterAdded,
    AdapterAnnotated,
    AliasMoved,
    BaseFingerprint,
    BaseSeen,
    QueryError,
    Registry,
    SearchStarted,
    TrialStarted,
)

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
    "name = '\udcff'",
    "list_contains(aliases, 'best')",
    "r < 8 -- \n union select 1",
    "r = r'x'",
    "r = 0x10",
    "rowid = 1",
    "store.adapters.r = 1",
    "(" * 1990 + "r" + ")" * 1990 + " < 1",
    "- " * 1990 + "r < 1",
]


@pytest.mark.parametrize("where", REFUSED, ids=lambda where: where[:30])
def test_what_is_not_a_comparison_is_refused(untouched: Registry, where: str) -> None:
    with pytest.raises(QueryError):
        untouched.adapters(where=where)
    assert len(untouched.adapters()) == 4


@pytest.mark.parametrize(
    "order_by",
    [
        *("r; drop table x", "1", "random()", "(select 1)", "r limit 1", "r desc desc", "", "r,", "r -- x"),
        *('"r"', "r collate nocase", "rowid", "adapters.r", "r" + " " * 3999 + "x", "r, " * 2000 + "r"),
    ],
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


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, base: BaseFingerprint) -> Registry:
    """Adapters with equal and missing values in every column that is sorted by, some tagged, some with an alias."""
    registry = Registry.open(tmp_path_factory.mktemp("many") / "registry.duckdb", create=True)
    trial = TrialStarted(trial_id="trial", search_id="search", number=7, params={})
    search = {"name": "sweep", "dataset": {}, "config": {}, "metric": "eval_loss", "mode": "min"}
    registry.record(
        BaseSeen(base=base),
        SearchStarted(search_id="search", base_content_root=base.content_root, num_samples=1, seed=0, **search),
        trial,
    )
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(60):
        loss = [None, 1.0, 1.5, 2.0, float("nan")][number % 5]
        registry.record(
            AdapterAdded(
                adapter_id=f"{number:02}-{number % 3}",
                name=f"name-{number % 10}",
                trial_id="trial" if number % 2 else None,
                base_content_root=base.content_root,
                params={"r": [4, 8, 16, None][number % 4]},
                metrics={"eval_loss": loss},
                artifact_sha256="a" * 64,
                at=at + timedelta(seconds=number % 7),
            )
        )
    registry.record(AliasMoved(name="name-1", alias="b", adapter_id="01-1"))
    registry.record(AliasMoved(name="name-1", alias="a", adapter_id="01-1"))
    registry.record(AdapterAnnotated(adapter_id="06-0", tags_added=("kept",)))
    registry.record(AdapterAnnotated(adapter_id="01-1", tags_added=("kept", "other")))
    return registry


@pytest.mark.parametrize("limit", [1, 2, 7, 59, 1000])
@pytest.mark.parametrize(
    ("where", "order_by"),
    [
        (None, None),
        (None, "eval_loss"),
        (None, "eval_loss desc nulls first, r"),
        ("r <= 8", "eval_loss"),
        ("r <= 8 or name like '%-1'", "name desc"),
        ("eval_loss > 1.2", "r nulls first"),
        (None, "params"),
        ("trial_id is null", "trial_id, seed"),
        ("r > 100", "r"),
    ],
)
def test_the_top_rows_are_those_of_the_whole_list(
    many: Registry, where: str | None, order_by: str | None, limit: int
) -> None:
    assert repr(many.adapters(where, order_by, limit)) == repr(many.adapters(where, order_by)[:limit])
    assert len(many.adapters(where, order_by)) == len(many.sql(f"from adapters where {where or 'true'}"))


def test_the_top_rows_have_what_other_tables_say_of_them(many: Registry) -> None:
    (first,) = many.adapters("r = 8", "adapter_id", 1)
    assert (first.adapter_id, first.trial_number, first.search_name) == ("01-1", 7, "sweep")
    assert (first.base_identity, first.aliases) == ("org/tiny@0123", ("a", "b"))
    (second,) = many.adapters("adapter_id = '00-0'", limit=1)
    assert (second.trial_number, second.search_id, second.aliases) == (None, None, ())
    assert second.base_identity == "org/tiny@0123" and second.artifact_path is not None
    assert [adapter.adapter_id for adapter in many.adapters("trial_number = 7", "adapter_id desc", 2)] == [
        "59-2",
        "57-0",
    ]


def test_a_tag_narrows_before_the_limit(many: Registry) -> None:
    assert [found.adapter_id for found in many.adapters(order_by="adapter_id", limit=1, tag="kept")] == ["01-1"]
    assert [found.adapter_id for found in many.adapters("r = 16", "adapter_id", 1, tag="kept")] == ["06-0"]
    assert [found.adapter_id for found in many.adapters("search_id is null", limit=9, tag="kept")] == ["06-0"]
    assert len(many.adapters("r = 8 or r = 16", tag="kept")) == 2
    assert many.adapters(limit=5, tag="') or true --") == []


def test_pages_follow_one_another_and_the_count_says_how_many_there_are(many: Registry) -> None:
    everything = [adapter.adapter_id for adapter in many.adapters(order_by="r, adapter_id")]
    pages = [many.adapters(order_by="r, adapter_id", limit=7, offset=start) for start in range(0, len(everything), 7)]
    assert [adapter.adapter_id for page in pages for adapter in page] == everything
    assert many.count_adapters() == len(everything)
    assert many.adapters(offset=len(everything)) == []
    for where, tag in (("r <= 16 and eval_loss is not null", None), (None, "kept"), ("r = 16", "kept")):
        assert many.count_adapters(where, tag=tag) == len(many.adapters(where, tag=tag))


@pytest.mark.parametrize("where", REFUSED)
def test_what_cannot_be_listed_cannot_be_counted(untouched: Registry, where: str) -> None:
    with pytest.raises(QueryError):
        untouched.count_adapters(where)


@pytest.mark.parametrize("offset", [-1, 1.5, "1", True])
def test_an_offset_is_a_whole_number(untouched: Registry, offset: object) -> None:
    with pytest.raises(QueryError, match="offset"):
        untouched.adapters(offset=offset)  # type: ignore[arg-type]
