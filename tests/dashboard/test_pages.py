from __future__ import annotations

from pathlib import Path

import pytest

from rankloom_dashboard import data
from rankloom_dashboard.launch import REGISTRY_VARIABLE
from rankloom_registry import (
    Registry,
    SearchResumed,
)

ADAPTER, ADAPTERS, COMPARE = "views/adapter.py", "views/adapters.py", "views/compare.py"


def texts(app, *kinds: str) -> list[str]:
    return [str(element.value) for kind in kinds for element in getattr(app, kind)]


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


def test_text_from_the_registry_is_never_read_as_markdown(run_page, hostile, read_as_markdown) -> None:
    for page, query in (
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
        assert "evil" not in read_as_markdown(app)


def test_a_read_sees_what_was_recorded_since(made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(made.path))
    assert data.searches()[0].status == "completed"
    with Registry.open(made.path) as registry:
        registry.record(SearchResumed(search_id=made.search_id))
    assert data.searches()[0].status == "running"
