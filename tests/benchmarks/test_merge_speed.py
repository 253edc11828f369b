"""The benchmark runs as it is written down, on a small checkpoint; what it measures there means nothing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module; the processes that it starts import the project as this one does."""
    roots = [str(BENCHMARKS.parent / name) for name in ("platform", "registry", "search_spaces")]
    monkeypatch.setenv("PYTHONPATH", ":".join(roots))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("merge_speed")


def test_every_method_makes_the_model(benchmark: Any, tmp_path: Path) -> None:
    found = benchmark.main(["--gigabytes", "0.005", "--shards", "3", "--rounds", "1", "--folder", str(tmp_path)])
    assert [one["method"] for one in found["samples"]] == ["cp", "peft", "full-precision", "as-trained"]
    assert found["elements_that_differ_from_peft"] == 0
    assert 2 * found["elements_compared_with_peft"] == pytest.approx(found["bytes"], rel=0.01)
    assert found["bytes"] == pytest.approx(5e6, rel=0.3)
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert all(one["peak_bytes"] >= one["imported_bytes"] * 0.9 for one in found["samples"])
    assert list(tmp_path.iterdir()) == []


def test_differing_elements_are_counted(benchmark: Any, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        benchmark.write_base(tmp_path / name, size=2_000_000, shards=2)
    assert benchmark.differing_elements(tmp_path / "one", tmp_path / "other")[0] == 0
    shard = max((tmp_path / "one").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert benchmark.differing_elements(tmp_path / "one", tmp_path / "other")[0] == 1


def test_memory_at_some_sizes(benchmark: Any, tmp_path: Path) -> None:
    found = benchmark.main(["--sizes", "0.003", "--shards", "2", "--folder", str(tmp_path)])
    assert [(one["gigabytes"], one["method"]) for one in found["samples"]] == [
        (size, method) for size in (0.003,) for method in ("full-precision", "as-trained")
    ]
