from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankloom.errors import MergeError
from rankloom.merging.merge import merge_adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens", "lm_head"], ["norm", "down_proj"]])
def test_saved_modules_take_the_place_of_the_bases(
    made: Any, tmp_path: Path, saved: list[str], dtype: torch.dtype
) -> None:
    base = made.base(tmp_path / "base", dtype=dtype)
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj"], modules_to_save=saved)
    report = merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    assert report.modules_merged == 4 + {"lm_head": 1, "embed_tokens": 2, "norm": 7}[saved[0]]
    made.same_as_peft(base, adapter, tmp_path / "merged", dtype)


def test_saved_module_beside_dora_on_conv1d(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base", "gpt2")
    adapter = made.adapter(
        tmp_path / "adapter", base, target_modules=["c_attn"], use_dora=True, modules_to_save=["ln_f"]
    )
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    made.same_as_peft(base, adapter, tmp_path / "merged", torch.float32)


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_half_of_a_tied_pair_is_refused(made: Any, tmp_path: Path, saved: list[str]) -> None:
    base = made.base(tmp_path / "base", "llama-tied")
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=saved)
    with pytest.raises(MergeError, match="one tensor in this base"):
        merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_tied_pair_that_agrees_is_saved_once(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base", "llama-tied")
    adapter = made.adapter(
        tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    table = tensors["base_model.model.model.embed_tokens.weight"]
    save_file(tensors | {"base_model.model.lm_head.weight": table.clone()}, path)
    assert merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged").modules_merged == 3
    merged = made.state(tmp_path / "merged", torch.float32)
    assert torch.equal(merged["model.embed_tokens.weight"], table) and torch.equal(merged["lm_head.weight"], table)


def test_a_resized_embedding_is_refused(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base")
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(65, 32)}, path)
    with pytest.raises(MergeError, match=r"is \(65, 32\) and lm_head.weight \(64, 32\)"):
        merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
