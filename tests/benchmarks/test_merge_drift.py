"""The drift table in small; its figures here mean nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_every_model_has_its_row(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    flags = ["--model", str(tiny_model), "--steps", "4", "--rows", "6", "--formats", "nf4", "--folder", str(tmp_path)]
    found = importlib.import_module("merge_drift").main(flags)
    for split in ("held-out", "general"):
        models = found[split]
        assert set(models) == {"rows", "adapter", "base", "rounding", "full-precision", "as-trained", "nf4"}
        assert models["as-trained"]["kl"] < models["full-precision"]["kl"]
    assert "| merged into the dequantized NF4 base |" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
