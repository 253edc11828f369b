"""The benchmark runs as it is written down, on a small file; what it measures there means nothing."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from rankloom_registry import fingerprint_base

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return importlib.import_module("fingerprint_speed")


def test_both_read_the_whole_file_in_turn(benchmark_module: Any, tmp_path: Path) -> None:
    small = ["--gib", "0.008", "--hidden", "64", "--repeats", "2", "--folder", str(tmp_path)]
    benchmark_module.main([*small, "--output", str(tmp_path / "run.json")])
    document = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    turns = [(sample["what"], sample["cold"]) for sample in document["samples"]]
    assert turns == 2 * [("cat", True), ("fingerprint", True), ("cat", False), ("fingerprint", False)]
    assert document["bytes"] > 0.008 * 2**30
    for sample in document["samples"]:
        assert sample["gb_s"] == pytest.approx(document["bytes"] / sample["seconds"] / 1e9)
    for kind in ("cold", "warm"):
        found = document[kind]
        assert found["ratio"] == pytest.approx(found["fingerprint_gb_s"] / found["cat_gb_s"], abs=0.01, rel=0.05)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_file_is_a_base(benchmark_module: Any, tmp_path: Path, dtype: str) -> None:
    path = benchmark_module.write_base(tmp_path, size=1 << 20, dtype=dtype, hidden=64)
    found = fingerprint_base(path.parent)
    assert found.dtype == {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype]
    assert found.bytes == found.parameters * benchmark_module.ITEM_BYTES[dtype] >= 1 << 20
