from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankloom.errors import PromotionError
from rankloom.exports.normalised import normalise
from rankloom.exports.verdicts import Verdict, verdicts
from rankloom_registry.errors import ArtifactError

Save = Callable[..., Path]

# (options, whether vLLM misreads it, whether llama.cpp does, vLLM's flag as it is)
KINDS: dict[str, tuple[dict[str, Any], bool, bool, str]] = {
    "lora": ({"r": 4, "lora_alpha": 8}, False, False, "--max-lora-rank 8"),
    "rank of none": ({"r": 24, "lora_alpha": 8}, False, False, "--max-lora-rank 32"),
    "rank of 1, rsLoRA": ({"r": 1, "lora_alpha": 3, "use_rslora": True}, False, False, "--max-lora-rank 1"),
    "rsLoRA": ({"r": 16, "lora_alpha": 32, "use_rslora": True}, False, True, "--max-lora-rank 16"),
    "ranks": ({"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 33}}, True, False, "--max-lora-rank 64"),
    "ranks that never differ": ({"r": 4, "rank_pattern": {"nothing": 33}}, False, False, "--max-lora-rank 8"),
    "smaller ranks everywhere": (
        {"r": 40, "lora_alpha": 8, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 7}},
        True,
        False,
        "--max-lora-rank 8",  # of the normalised form, whose r is that of the tensors
    ),
    "alphas": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 5}}, True, True, "--max-lora-rank 8"),
    "alphas that follow the ranks": (
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}},
        False,
        True,
        "--max-lora-rank 8",
    ),
    "no factor": ({"r": 4, "lora_alpha": 0}, False, True, "--max-lora-rank 8"),
}


def both(adapter: Path) -> dict[str, Verdict]:
    return {verdict.engine: verdict for verdict in verdicts(adapter)}


@pytest.mark.parametrize(("options", "vllm", "llama_cpp", "flag"), KINDS.values(), ids=KINDS)
def test_who_misreads_what(
    tmp_path: Path, base: Path, save_adapter: Save, options: dict[str, Any], vllm: bool, llama_cpp: bool, flag: str
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, **options)
    found = both(adapter)
    assert found.keys() == {"vllm", "llama.cpp"}
    assert found["vllm"].ok and found["llama.cpp"].ok
    assert (found["vllm"].needs_normalised, found["llama.cpp"].needs_normalised) == (vllm, llama_cpp)
    assert found["vllm"].notes[0] == flag
    normalise(adapter, tmp_path / "normalised")
    normal = both(tmp_path / "normalised")
    assert all(verdict.ok and not verdict.needs_normalised for verdict in normal.values())
    assert normal["vllm"].notes == ((flag,) if vllm else normal["vllm"].notes)


def test_old_vllm_is_warned_of(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, r=4, lora_alpha=8, use_rslora=True)
    assert any("rsLoRA" in note for note in both(adapter)["vllm"].notes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "DoRA, which also rescales the weight that it is added to: merge it"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save=['lm_head']): merge it"),
        ({"bias": "lora_only"}, "lora_bias=False): serve it with PEFT"),
        ({"target_modules": ["embed_tokens"]}, "embeddings: serve it with PEFT"),
    ],
    ids=["dora", "modules", "bias", "embeddings"],
)
def test_what_no_engine_serves(
    tmp_path: Path, base: Path, save_adapter: Save, options: dict[str, Any], reason: str
) -> None:
    for verdict in verdicts(save_adapter(tmp_path / "adapter", base, **options)):
        assert not verdict.ok and not verdict.needs_normalised
        assert any(reason in line for line in verdict.reasons)


def test_every_reason_is_named(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, use_dora=True, modules_to_save=["lm_head"])
    for verdict in verdicts(adapter):
        assert len(verdict.reasons) == 2


@pytest.mark.parametrize("name", ["base_model.model.model.norm.weight", "base_model.model.model.norm.bias", "stray"])
def test_no_tensor_is_overlooked(tmp_path: Path, base: Path, save_adapter: Save, name: str) -> None:
    adapter = save_adapter(tmp_path / "adapter", base)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(weights | {name: torch.ones(64)}, adapter / "adapter_model.safetensors")
    for verdict in verdicts(adapter):
        assert not verdict.ok and repr(name) in verdict.reasons[0]


def test_a_rank_beyond_vllm(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    found = both(save_adapter(tmp_path / "adapter", base, r=513, target_modules=["q_proj"]))
    assert not found["vllm"].ok and "513" in found["vllm"].reasons[0]
    assert found["llama.cpp"].ok


def test_layers_that_store_in_out(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    adapter = save_adapter(tmp_path / "adapter", base)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": True}))
    found = both(adapter)
    assert found["vllm"].ok and not found["llama.cpp"].ok


def test_an_output_head_is_noted(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "lm_head"])
    for verdict in verdicts(adapter):
        assert verdict.ok and any("output head" in note for note in verdict.notes)


def test_only_headers_are_read(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, r=4, lora_alpha=8)
    weights = adapter / "adapter_model.safetensors"
    before = verdicts(adapter)
    content = bytearray(weights.read_bytes())
    content[-1000:] = b"\xff" * 1000  # NaN in float32
    weights.write_bytes(content)
    assert verdicts(adapter) == before
    weights.write_bytes(content[:-4])
    with pytest.raises(ArtifactError, match="not a sound"):
        verdicts(adapter)


def test_a_folder_that_is_no_adapter(tmp_path: Path, base: Path) -> None:
    with pytest.raises(PromotionError, match=r"must have adapter_config\.json"):
        verdicts(base)
