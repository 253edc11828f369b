"""The benchmark of queries runs as it is written down, and its registry answers as a plain list of its rows would."""

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
        yield importlib.import_module("registry_query")


def test_the_answer_is_that_of_a_plain_list(benchmark: Any, tmp_path: Path) -> None:
    registry = benchmark.fill(tmp_path / "registry.duckdb", 5000)
    everything = registry.adapters()
    assert len(everything) == 5000 and len(registry.bases()) == 8 and len(registry.searches()) == 313
    where = benchmark.one_base(registry)
    root = min(adapter.base_content_root for adapter in everything)
    matching = [adapter for adapter in everything if adapter.base_content_root == root and adapter.r <= 16]
    assert 300 < len(matching) < 500
    matching.sort(key=lambda adapter: adapter.adapter_id)
    matching.sort(key=lambda adapter: adapter.created_at, reverse=True)
    matching.sort(key=lambda adapter: (adapter.eval_loss is None, adapter.eval_loss))
    assert registry.adapters(where, "eval_loss", 20) == matching[:20]
    assert registry.adapters(where, "eval_loss") == matching
    assert any(adapter.aliases for adapter in everything) and matching[0].search_name.startswith("sweep-")


def test_it_prints_every_figure(benchmark: Any, tmp_path: Path) -> None:
    benchmark.main(["--adapters", "1000", "--repeats", "1", "--output", str(tmp_path / "run.json")])
    document = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    figures = document["1000 adapters"]
    assert figures["top_20"]["median"] > 0 and figures["top_20_held_open"]["median"] > 0
    assert figures["command_line"]["adapters list"]["median"] > 100
