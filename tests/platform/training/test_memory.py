from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from rankloom.training import memory
from rankloom.training.memory import available_bytes, peak_of

CPU = torch.device("cpu")


def test_the_peak_is_of_the_work_alone() -> None:
    before = torch.ones(2**26, dtype=torch.uint8)  # held already: counts for nothing

    def fill(size: int) -> None:
        assert torch.ones(size, dtype=torch.uint8).all()

    peaks = [peak_of(lambda size=size: fill(size), CPU) for size in (2**27, 2**25)]
    assert before.all()
    assert 2**27 <= peaks[0] + 2**20 < 2**27 + 2**25
    assert peaks[1] < 2**26


def test_memory_ends_at_the_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    free = available_bytes(CPU)
    assert 0 < free <= psutil.virtual_memory().total
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.max").write_text("4000000\n")
    assert available_bytes(CPU) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(CPU) > 1_000_000
