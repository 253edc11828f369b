from __future__ import annotations

from pathlib import Path

import pytest

from rankloom_dashboard import data
from rankloom_dashboard.launch import REGISTRY_VARIABLE
from rankloom_registry import (
    Registry,
    SearchResumed,
)

ADAPTER, COMPARE = "views/adapter.py", "views/compare.py"
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


def test_an_adapter_page_shows_what_was_recorded(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter=made_once.best)
    assert not app.exception
    assert metrics(app)["Eval loss"].startswith("2.0")
    shown = texts(app, "text")
    assert {"32", "7.80e-4", "all-linear", "0.05", "105", "tiny/llama@5f3a", "bfloat16", "134,515,008"} <= set(shown)
    codes = texts(app, "code")
    assert "c0" * 32 in codes
    assert any(code.startswith(f"rankloom promote {made_once.best} --output DIR") for code in codes)
    tables = [table.value for table in app.dataframe]
    assert any("output" in table and list(table["output"]) == ["models/champion"] for table in tables)
    assert any("metrics" in table and "perplexity 7.856" in table["metrics"][0] for table in tables)
    assert any("event" in table and "adapter_added" in set(table["event"]) for table in tables)


def test_an_adapter_is_found_by_alias(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter="lora-tiny-5@champion")
    assert not app.exception
    assert app.query_params["adapter"] == made_once.best
    assert app.selectbox[0].value == made_once.best


def test_an_unknown_adapter_is_a_message_and_another_can_be_chosen(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter="nowhere")
    assert not app.exception
    assert len(app.error) == 1
    assert any("nowhere" in code for code in texts(app, "code"))
    app.selectbox[0].set_value(made_once.second).run()
    assert app.query_params["adapter"] == made_once.second


def test_verify_tells_whole_files_from_changed_ones(run_page, made) -> None:
    app = run_page(made.path, ADAPTER, adapter=made.best)
    app.button[0].click().run()
    assert len(app.success) == 1
    with Registry.open(made.path) as registry:
        weights = registry.adapter(made.best).artifact_path / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    app.button[0].click().run()
    assert len(app.error) == 1
    assert not app.success


def test_a_discarded_adapter_offers_nothing_that_needs_its_files(run_page, made_once) -> None:
    app = run_page(made_once.path, ADAPTER, adapter=made_once.discarded)
    assert not app.exception
    assert not app.button
    assert not any(code.startswith("rankloom") for code in texts(app, "code"))


def test_compare_marks_differences_and_can_hide_the_rest(run_page, made_once) -> None:
    app = run_page(made_once.path, COMPARE, ids=f"{made_once.best},{made_once.second}")
    assert not app.exception
    assert not app.warning
    everything = app.dataframe[-1].value
    app.toggle[0].set_value(True).run()
    differences = app.dataframe[-1].value
    assert list(differences.columns) == ["property", "lora-tiny-5", "lora-tiny-2"]
    assert len(differences) == 4 < len(everything)
    assert all(name.startswith("≠ ") for name in differences["property"])


def test_compare_takes_at_most_four_and_names_the_unknown(run_page, made_once) -> None:
    known = (made_once.best, made_once.second, made_once.prior, made_once.discarded)
    app = run_page(made_once.path, COMPARE, ids=",".join((*known, "nowhere", made_once.best)))
    assert not app.exception
    assert len(app.error) == 1
    assert app.multiselect[0].value == list(known)
    assert app.query_params["ids"] == ",".join(known)
    app.multiselect[0].set_value(list(known[:2])).run()
    assert app.query_params["ids"] == ",".join(known[:2])


def test_compare_warns_where_bases_differ(run_page, hostile) -> None:
    app = run_page(hostile.path, COMPARE, ids=f"{hostile.best},{hostile.imported}")
    assert not app.exception
    assert len(app.warning) == 1
    assert set(app.dataframe[0].value["content root"]) == {"c0" * 32, "d1" * 32}


@pytest.mark.parametrize("page", ["views/overview.py", ADAPTER, COMPARE])
def test_a_missing_registry_is_a_message(run_page, tmp_path: Path, page: str) -> None:
    app = run_page(tmp_path / "none.duckdb", page)
    assert not app.exception
    assert any(code == "rankloom quickstart" for code in texts(app, "code"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", ["views/overview.py", ADAPTER, COMPARE])
def test_an_empty_registry_says_what_to_run(run_page, tmp_path: Path, page: str) -> None:
    with Registry.open(tmp_path / "registry.duckdb", create=True):
        pass
    app = run_page(tmp_path / "registry.duckdb", page)
    assert not app.exception
    assert "rankloom quickstart" in texts(app, "code")


@pytest.mark.parametrize("page", ["views/overview.py", ADAPTER, COMPARE])
def test_a_file_that_is_no_registry_is_a_message(run_page, tmp_path: Path, page: str) -> None:
    path = tmp_path / "registry.duckdb"
    path.write_bytes(b"not a database" * 1000)
    app = run_page(path, page)
    assert not app.exception
    assert len(app.error) == 1


def test_text_from_the_registry_is_never_read_as_markdown(run_page, hostile) -> None:
    for page, query in (
        (ADAPTER, {"adapter": hostile.imported}),
        (ADAPTER, {"adapter": hostile.text}),
        (COMPARE, {"ids": f"{hostile.imported},{hostile.best},{hostile.text}"}),
    ):
        app = run_page(hostile.path, page, **query)
        assert not app.exception
        assert any("evil" in text for text in [*texts(app, "text", "code"), *map(str, texts(app, "dataframe"))])
        for kind in READ_AS_MARKDOWN:
            for element in getattr(app, kind):
                assert "evil" not in f"{element.value} {getattr(element, 'label', '')}"


def test_a_read_sees_what_was_recorded_since(made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(made.path))
    assert data.glance().searches[0].status == "completed"
    with Registry.open(made.path) as registry:
        registry.record(SearchResumed(search_id=made.search_id))
    assert data.glance().searches[0].status == "running"
