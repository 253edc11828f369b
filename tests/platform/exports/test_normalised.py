from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rankloom.errors import PromotionError
from rankloom.exports.normalised import normalise
from rankloom.merging.merge import merge_adapter

Save = Callable[..., Path]


def loaded(base: Path, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()


def deltas(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT itself adds to each module."""
    modules = loaded(base, adapter).named_modules()
    return {name: module.get_delta_weight("default") for name, module in modules if hasattr(module, "lora_A")}


def config_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return values


def test_peft_reads_the_same_update_and_the_same_logits(
    tmp_path: Path, base: Path, save_adapter: Save, lora: dict[str, Any]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, **lora)
    normalise(adapter, tmp_path / "normalised")
    config, before = config_of(tmp_path / "normalised"), config_of(adapter)
    rank = max([lora["r"], *lora.get("rank_pattern", {}).values()])
    changed = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    assert config == before | changed
    tensors = load_file(tmp_path / "normalised" / "adapter_model.safetensors")
    assert {min(tensor.shape) for tensor in tensors.values()} == {rank}

    trained, normal = deltas(base, adapter), deltas(base, tmp_path / "normalised")
    assert trained.keys() == normal.keys() and len(trained) == 14
    for name, delta in trained.items():
        torch.testing.assert_close(normal[name], delta, rtol=1e-6, atol=1e-7)
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        alone = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        expected, got = loaded(base, adapter)(ids).logits, loaded(base, tmp_path / "normalised")(ids).logits
    assert (expected - alone).abs().max() > 0.05
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_each_b_is_the_factor_times_b_rounded_once(
    tmp_path: Path, base: Path, save_adapter: Save, lora: dict[str, Any]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, **lora)
    normalise(adapter, tmp_path / "normalised")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (adapter, tmp_path / "normalised"))
    scaling = {
        f"base_model.model.{name.removeprefix('base_model.model.')}": module.scaling["default"]
        for name, module in loaded(base, adapter).named_modules()
        if hasattr(module, "lora_A")
    }
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        module, _, half = name.partition(".lora_")
        rank = tensor.shape[0] if half.startswith("A") else tensor.shape[1]
        got = after[name][:rank] if half.startswith("A") else after[name][:, :rank]
        rest = after[name][rank:] if half.startswith("A") else after[name][:, rank:]
        assert torch.equal(got, tensor if half.startswith("A") else tensor * scaling[module])
        assert not rest.any()


@pytest.mark.parametrize("alpha", [2, 4, 16])
def test_a_power_of_two_leaves_every_bit_of_the_update(
    tmp_path: Path, base: Path, save_adapter: Save, alpha: int
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, r=4, lora_alpha=alpha)
    normalise(adapter, tmp_path / "normalised")
    trained, normal = deltas(base, adapter), deltas(base, tmp_path / "normalised")
    assert all(torch.equal(normal[name], delta) for name, delta in trained.items())


@pytest.mark.parametrize(("alpha", "dtype"), [(8, torch.bfloat16), (7, torch.float32)], ids=["exact", "not"])
def test_b_keeps_half_precision_only_where_that_is_exact(
    tmp_path: Path, base: Path, save_adapter: Save, alpha: int, dtype: torch.dtype
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, torch.bfloat16, r=4, lora_alpha=alpha)
    normalise(adapter, tmp_path / "normalised")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (adapter, tmp_path / "normalised"))
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    assert {tensor.dtype for name, tensor in after.items() if "lora_B" in name} == {dtype}
    assert {tensor.dtype for name, tensor in after.items() if "lora_A" in name} == {torch.bfloat16}
    for name in before:
        factor = alpha / 4 if "lora_B" in name else 1
        assert torch.equal(after[name].float(), before[name].float() * factor)


def test_merging_it_gives_the_same_weights(
    tmp_path: Path, base: Path, save_adapter: Save, lora: dict[str, Any]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, **lora)
    normalise(adapter, tmp_path / "normalised")
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    merge_adapter(adapter=tmp_path / "normalised", base=base, output=tmp_path / "merged-normalised")
    expected, got = (load_file(tmp_path / f / "model.safetensors") for f in ("merged", "merged-normalised"))
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-6, atol=1e-7)


def test_it_is_as_llama_cpp_and_vllm_read_it(
    tmp_path: Path, base: Path, save_adapter: Save, lora: dict[str, Any]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, **lora)
    normalise(adapter, tmp_path / "normalised")
    trained = deltas(base, adapter)
    config = config_of(tmp_path / "normalised")
    tensors = load_file(tmp_path / "normalised" / "adapter_model.safetensors")
    for name, delta in trained.items():
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        llama_cpp = config["lora_alpha"] / b.shape[1]
        vllm = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
        assert llama_cpp == vllm == 1
        torch.testing.assert_close(b @ a, delta, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save=['lm_head']"),
        ({"target_modules": ["embed_tokens"]}, "embeddings"),
        ({"trainable_token_indices": [1, 2], "target_modules": ["q_proj"]}, "trainable_token_indices"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_what_it_cannot_say_is_refused(
    tmp_path: Path, base: Path, save_adapter: Save, options: dict[str, Any], reason: str
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, **options)
    with pytest.raises(PromotionError) as caught:
        normalise(adapter, tmp_path / "normalised")
    assert reason in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_experts_are_refused(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    adapter = save_adapter(tmp_path / "adapter", base)
    config = config_of(adapter) | {"target_parameters": ["mlp.experts.gate_up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(PromotionError, match="mlp.experts.gate_up_proj"):
        normalise(adapter, tmp_path / "normalised")


def test_a_factor_that_overflows_is_refused(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    adapter = save_adapter(tmp_path / "adapter", base)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    weights[name][0, 0] = 3e38
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(PromotionError, match="must be finite"):
        normalise(adapter, tmp_path / "normalised")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_ranks_that_are_not_those_of_the_configuration_are_refused(
    tmp_path: Path, base: Path, save_adapter: Save
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base)
    (adapter / "adapter_config.json").write_text(json.dumps(config_of(adapter) | {"r": 5}))
    with pytest.raises(PromotionError, match="has r=5"):
        normalise(adapter, tmp_path / "normalised")


def test_nothing_is_overwritten(tmp_path: Path, base: Path, save_adapter: Save) -> None:
    adapter = save_adapter(tmp_path / "adapter", base)
    (tmp_path / "normalised").mkdir()
    (tmp_path / "normalised" / "mine.txt").write_text("kept")
    with pytest.raises(PromotionError, match="new or empty"):
        normalise(adapter, tmp_path / "normalised")
    assert [path.name for path in (tmp_path / "normalised").iterdir()] == ["mine.txt"]


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(PromotionError, match=r"must have adapter_config\.json"):
        normalise(base, tmp_path / "normalised")
