from __future__ import annotations

from pathlib import Path

import pytest

from rankloom_dashboard import data
from rankloom_dashboard.launch import REGISTRY_VARIABLE
from rankloom_registry import (
    Registry,
    SearchEnded,
    SearchResumed,
    TrialStarted,
)

ADAPTER, ADAPTERS, COMPARE = "views/adapter.py", "views/adapters.py", "views/compare.py"
HOSTILE = "<script>alert(1)</script> ![x](http://evil.example/x.png) **bold** :material/home:"
READ_AS_MARKDOWN = (
    "title",
    "header",
    "subheader",
    "caption",
    "markdown",
    "info",
    "warning",
    "error",
    "success",
    "metric",
)


def texts(app, *kinds: str) -> list[str]:
    return [str(element.value) for kind in kinds for element in getattr(app, kind)]


def metrics(app) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def test_overview_shows_the_newest_search_ranked(run_page, made_once) -> None:
    app = run_page(made_once.path)
    assert not app.exception
    figures = metrics(app)
    assert app.text[0].value == "registry.duckdb: 1 search · 8 trials · 4 adapters · 1 base · 1 promotion"
    assert figures["Stopped early"] == "3"
    assert figures["Failed"] == "1"
    assert figures["Gain over trial 0"].startswith("0.17")
    table = app.dataframe[0].value
    assert list(table["trial"]) == [5, 2, 4, 0, 3, 1, 7, 6]
    assert app.query_params["search"] == made_once.search_id


def test_the_address_selects_rows_and_unlocks_what_can_be_done_with_them(run_page, made_once) -> None:
    nothing = run_page(made_once.path)
    assert [link.disabled for link in links(nothing)] == [True, True]
    one = run_page(made_once.path, ids=made_once.best)
    assert [link.disabled for link in links(one)] == [False, True]
    two = run_page(made_once.path, ids=f"{made_once.best},{made_once.second}")
    assert [link.disabled for link in links(two)] == [True, False]
    assert set(two.query_params["ids"].split(",")) == {made_once.best, made_once.second}


def links(app) -> list:
    return [element.proto for element in app.get("page_link")]


def test_all_adapters_can_be_listed(run_page, made_once) -> None:
    app = run_page(made_once.path, table="All adapters")
    assert set(app.dataframe[0].value["adapter"]) == {
        made_once.best,
        made_once.second,
        made_once.prior,
        made_once.discarded,
    }


@pytest.mark.parametrize("page", ["views/overview.py", ADAPTER, ADAPTERS, COMPARE])
def test_a_missing_registry_is_a_message(run_page, tmp_path: Path, page: str) -> None:
    app = run_page(tmp_path / "none.duckdb", page)
    assert not app.exception
    assert any(code == "rankloom quickstart" for code in texts(app, "code"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", ["views/overview.py", ADAPTER, ADAPTERS, COMPARE])
def test_an_empty_registry_says_what_to_run(run_page, tmp_path: Path, page: str) -> None:
    with Registry.open(tmp_path / "registry.duckdb", create=True):
        pass
    app = run_page(tmp_path / "registry.duckdb", page)
    assert not app.exception
    assert "rankloom quickstart" in texts(app, "code")


@pytest.mark.parametrize("page", ["views/overview.py", ADAPTER, ADAPTERS, COMPARE])
def test_a_file_that_is_no_registry_is_a_message(run_page, tmp_path: Path, page: str) -> None:
    path = tmp_path / "registry.duckdb"
    path.write_bytes(b"not a database" * 1000)
    app = run_page(path, page)
    assert not app.exception
    assert len(app.error) == 1


def test_a_running_search_shows_progress_and_ends_by_itself(run_page, made, monkeypatch) -> None:
    with Registry.open(made.path) as registry:
        registry.record(
            SearchResumed(search_id=made.search_id),
            TrialStarted(trial_id="t-new", search_id=made.search_id, number=8, params={"r": 4}),
        )
    app = run_page(made.path)
    assert not app.exception
    assert app.get("progress")
    with Registry.open(made.path) as registry:
        registry.record(SearchEnded(search_id=made.search_id, status="completed"))
    app.run()
    assert not app.get("progress")


def test_text_from_the_registry_is_never_read_as_markdown(run_page, hostile) -> None:
    for page, query in (
        ("views/overview.py", {"table": "All adapters"}),
        ("views/overview.py", {"search": hostile.text}),
        (ADAPTER, {"adapter": hostile.imported}),
        (ADAPTER, {"adapter": hostile.text}),
        (ADAPTER, {"adapter": hostile.imported, "part": "Records"}),
        (ADAPTER, {"adapter": hostile.imported, "part": "Fingerprint"}),
        (ADAPTERS, {"order": "created_at desc"}),
        (ADAPTERS, {"where": hostile.text, "tag": hostile.text, "ids": hostile.text}),
        (COMPARE, {"ids": f"{hostile.imported},{hostile.best},{hostile.text}"}),
    ):
        app = run_page(hostile.path, page, **query)
        assert not app.exception
        tables = [table.value.to_json() for table in app.dataframe]
        assert any("evil" in text for text in [*texts(app, "text", "code"), *tables])
        for kind in READ_AS_MARKDOWN:
            for element in getattr(app, kind):
                assert "evil" not in f"{element.value} {getattr(element, 'label', '')}"


def test_a_read_sees_what_was_recorded_since(made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(made.path))
    assert data.glance().searches[0].status == "completed"
    with Registry.open(made.path) as registry:
        registry.record(SearchResumed(search_id=made.search_id))
    assert data.glance().searches[0].status == "running"
