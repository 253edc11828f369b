from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankloom.errors import MergeError
from rankloom.merging.merge import merge_adapter
from rankloom.merging.replay import replay

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
TARGETS: dict[str, dict[str, Any]] = {
    "both": {"target_parameters": BOTH},
    "down": {"target_parameters": BOTH[1:], "use_rslora": True},
    "patterns": {
        "target_parameters": BOTH,
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {r"1\..*gate_up_proj": 13},
    },
}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe", "gpt-oss"])
def test_experts_are_those_of_peft(made: Any, tmp_path: Path, kind: str, targets: str) -> None:
    base = made.base(tmp_path / "base", kind)
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["q_proj"], **TARGETS[targets])
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    expected, got = made.by_peft(base, adapter, torch.float32), made.state(tmp_path / "merged", torch.float32)
    before = made.state(base, torch.float32)
    assert got.keys() == expected.keys()
    changed = {name for name in got if not torch.equal(got[name], before[name])}
    assert {name.rpartition("mlp.experts.")[2] for name in changed if "experts" in name} == {
        target.rpartition(".")[2] for target in TARGETS[targets]["target_parameters"]
    }
    for name in got:
        # PEFT contracts all experts in one einsum, whose sums over the rank have another order.
        torch.testing.assert_close(got[name], expected[name], rtol=2e-6, atol=2e-6)


def test_experts_in_bf16_are_rounded_once(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base", "qwen3-moe", torch.bfloat16)
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["q_proj"], target_parameters=BOTH)
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    report = replay(adapter=adapter, base=base, merged=tmp_path / "merged", how="full")
    assert report.passed
    # PEFT rounds the update of a parameter to bf16 before it adds it, and then the sum again: half a step each time.
    expected, got = made.by_peft(base, adapter, torch.bfloat16), made.state(tmp_path / "merged", torch.bfloat16)
    for name in got:
        torch.testing.assert_close(got[name].float(), expected[name].float(), rtol=2**-7, atol=2**-7)


def test_a_linear_weight_as_a_parameter(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base")
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["v_proj"], target_parameters=["q_proj.weight"])
    assert merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged").modules_merged == 4
    made.same_as_peft(base, adapter, tmp_path / "merged", torch.float32)


def test_a_missing_expert_is_refused(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base", "qwen3-moe")
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["q_proj"], target_parameters=BOTH)
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.0.mlp.experts.1.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match="weights of its 3 experts"):
        merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")


def test_lengths_of_experts_are_refused(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base", "qwen3-moe")
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["q_proj"], target_parameters=BOTH)
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    lengths = {
        name.replace("lora_B.weight", "lora_magnitude_vector"): b[:, 0].clone()
        for name, b in tensors.items()
        if "lora_B" in name
    }
    save_file(tensors | lengths, path)
    with pytest.raises(MergeError, match="use_dora=True beside target_parameters"):
        merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
