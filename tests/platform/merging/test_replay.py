from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankloom.config import QuantizationConfig
from rankloom.errors import MergeError
from rankloom.merging import replay as replay_module
from rankloom.merging.merge import merge_adapter
from rankloom.merging.replay import replay

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("recipe", ["full-precision", "as-trained"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("kind", "dora"), [("llama", False), ("llama-64", True), ("gpt2-64", True)])
def test_a_merge_is_replayed(
    made: Any,
    tmp_path: Path,
    kind: str,
    dora: bool,
    dtype: torch.dtype,
    recipe: Literal["full-precision", "as-trained"],
) -> None:
    base = made.base(tmp_path / "base", kind, dtype)
    adapter = made.adapter(tmp_path / "adapter", base, use_dora=dora)
    same = {"adapter": adapter, "base": base, "recipe": recipe, "quantization": QuantizationConfig()}
    merge_adapter(output=tmp_path / "merged", **same)
    calls: list[tuple[int, int]] = []
    full = replay(merged=tmp_path / "merged", how="full", progress=lambda *call: calls.append(call), **same)
    weights = load_file(base / "model.safetensors")
    assert full.passed and full.differing == ()
    assert (full.tensors, full.elements_checked) == (len(weights), sum(t.numel() for t in weights.values()))
    assert calls == [(done + 1, len(weights)) for done in range(len(weights))]
    assert full.largest_error_ulp <= 0.5 and (dtype == torch.float32 or full.largest_error_ulp > 0.4)
    assert replay(merged=tmp_path / "merged", how="sampled", **same).passed


def edit(folder: Path, name: str, row: int, factor: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(len(tensors[name]), -1)[row, 0] *= factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", [Q_PROJ, "model.norm.weight", "model.embed_tokens.weight"])
def test_one_wrong_element_is_found(made: Any, tmp_path: Path, name: str) -> None:
    base = made.base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = made.adapter(tmp_path / "adapter", base)
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    edit(tmp_path / "merged", name, 17, 1 + 2**-6)  # two steps of bf16
    for how in ("sampled", "full"):
        report = replay(adapter=adapter, base=base, merged=tmp_path / "merged", how=how)
        assert not report.passed and report.differing == (name,)


def test_full_looks_where_a_sample_does_not(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "_SAMPLED_BLOCKS", 2)
    base = made.base(tmp_path / "base", "llama-64", torch.bfloat16)
    adapter = made.adapter(tmp_path / "adapter", base)
    same = {"adapter": adapter, "base": base, "merged": tmp_path / "merged"}
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    edit(tmp_path / "merged", "model.layers.1.mlp.up_proj.weight", 100, 2)  # the second of three blocks of rows
    assert replay(how="sampled", **same).passed
    assert replay(how="full", **same).differing == ("model.layers.1.mlp.up_proj.weight",)


def test_the_recipes_differ(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base")
    adapter = made.adapter(tmp_path / "adapter", base)
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    report = replay(
        adapter=adapter, base=base, merged=tmp_path / "merged", recipe="as-trained", quantization=QuantizationConfig()
    )
    assert Q_PROJ in report.differing and "lm_head.weight" not in report.differing


def test_another_adapter_is_told(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base")
    adapter = made.adapter(tmp_path / "adapter", base)
    other = made.adapter(tmp_path / "other", base, lora_alpha=9)
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    report = replay(adapter=other, base=base, merged=tmp_path / "merged")
    assert len(report.differing) == 14 and report.largest_error_ulp > 1


def test_a_saved_module_is_compared(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base")
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    assert replay(adapter=adapter, base=base, merged=tmp_path / "merged").passed
    edit(tmp_path / "merged", "lm_head.weight", 3, 2)
    assert replay(adapter=adapter, base=base, merged=tmp_path / "merged").differing == ("lm_head.weight",)


def test_a_missing_tensor_or_file_is_refused(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base")
    adapter = made.adapter(tmp_path / "adapter", base)
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    path = tmp_path / "merged" / "model.safetensors"
    tensors = load_file(path)
    del tensors[Q_PROJ]
    save_file(tensors, path)
    with pytest.raises(MergeError, match="the same header"):
        replay(adapter=adapter, base=base, merged=tmp_path / "merged")
    path.unlink()
    with pytest.raises(MergeError, match="the base's weight files"):
        replay(adapter=adapter, base=base, merged=tmp_path / "merged")
