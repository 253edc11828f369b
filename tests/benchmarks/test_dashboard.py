"""The benchmark of the dashboard visits the real server, and its visits tell a page from an error."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("dashboard")


def test_it_prints_every_figure(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--adapters", "60", "--searches", "3", "--repeats", "1", "--pages", "overview"]
    benchmark.main([*flags, "--output", str(tmp_path / "run.json")])
    document = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert (document["adapters"], document["searches"]) == (60, 3)
    assert list(document["pages"]) == ["overview"]
    assert min(document["pages"]["overview"].values()) > 0
    assert document["filter"]["max"] >= document["filter"]["median"] > 0
    assert 50 < document["server_rss_mb"] < 500
    assert "memory of the server" in capsys.readouterr().out


def test_a_page_that_is_not_there_or_shows_an_error_is_no_figure(benchmark: Any, tmp_path: Path) -> None:
    broken = tmp_path / "registry.duckdb"
    broken.write_bytes(b"not a database" * 1000)
    with benchmark.serving(broken) as (port, _):
        with pytest.raises(RuntimeError, match="shows an error"):
            benchmark.visit(port, "")
        with pytest.raises(RuntimeError, match="there is no page 'nowhere'"):
            benchmark.visit(port, "nowhere")
