"""The registry's benchmark in small: nothing that was acknowledged is lost; its timings here mean nothing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module; the processes that it starts import the registry as this one does."""
    with pytest.MonkeyPatch.context() as patch:
        roots = [str(BENCHMARKS.parent / name) for name in ("platform", "registry", "search_spaces")]
        patch.setenv("PYTHONPATH", ":".join(roots))
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("registry_load")


@pytest.mark.parametrize("flags", [(), ("--owner",)], ids=["turns", "owner"])
def test_nothing_is_lost_under_load(benchmark: Any, tmp_path: Path, flags: tuple[str, ...]) -> None:
    sizes = ("--writers", "3", "--transactions", "12")
    found = benchmark.main(["load", *sizes, *flags, "--folder", str(tmp_path)])
    assert (found["transactions"], found["lost"], found["errors"], found["kept_twice"]) == (36, 0, 0, 0)
    assert found["reads"] > 0 and found["wait_s"]["max"] >= found["wait_s"]["median"] > 0


@pytest.mark.parametrize("victim", ["writer", "owner", "lane"])
def test_nothing_acknowledged_is_lost_when_processes_are_killed(benchmark: Any, tmp_path: Path, victim: str) -> None:
    found = benchmark.main(["kill", "--victim", victim, "--times", "3", "--folder", str(tmp_path)])
    assert (found["kills"], found["lost"], found["errors"]) == (3, 0, 0)
    assert found["acknowledged"] >= 3
