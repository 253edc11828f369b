from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import peft
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rankloom.config import QuantizationConfig
from rankloom.errors import MergeError
from rankloom.merging import blocks
from rankloom.merging.fourbit import RoundTrip
from rankloom.merging.merge import merge_adapter
from rankloom.merging.skeleton import quantized_modules
from rankloom.training.resident import bitsandbytes_config, keep_gradients_after_evaluation

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Kind = Literal["nf4", "fp4"]


def quantized(folder: Path, quantization: QuantizationConfig, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=bitsandbytes_config(quantization, dtype), device_map={"": "cpu"}
    )


def dequantized(module: Any) -> torch.Tensor:
    values: torch.Tensor = dequantize_4bit(module.weight.data, module.weight.quant_state)
    return values.T if module.source_cls.__name__ == "Conv1D" else values


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_round_trip_is_that_of_bitsandbytes(kind: Kind, dtype: str, double: bool) -> None:
    torch.manual_seed(0)
    quantization = QuantizationConfig(bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)
    round_trip = RoundTrip(quantization, DTYPES[dtype], torch.device("cpu"))
    weight = torch.randn(384, 512).mul(0.02).to(DTYPES[dtype])
    weight[0] = 0
    weight[1, :64] = torch.linspace(-1, 1, 64)  # the ends and the middle of the table
    weight[2] *= 1e-3
    parts = weight.split(100)
    inverse, factors = round_trip.scales(round_trip.largest(part) for part in parts)
    found = weight.float().clone()
    row = 0
    for part in parts:
        eighths = slice(row * 8, (row + len(part)) * 8)  # eight blocks a row
        round_trip.restore(found[row : row + len(part)], inverse[eighths], factors[eighths])
        row += len(part)
    assert torch.equal(found, round_trip.whole(weight))
    assert torch.equal(found, round_trip.slowly(weight, factors))
    assert (found != weight).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["llama-64", "llama-tied", "gpt2-64", "phi3", "gpt-neox-tied", "qwen3-moe"])
def test_quantized_modules_are_those_of_the_search(made: Any, tmp_path: Path, kind: str) -> None:
    base = made.base(tmp_path / "base", kind)
    model = quantized(base, QuantizationConfig(), torch.float32)
    expected = [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    assert expected and quantized_modules(base, QuantizationConfig()) == expected


@pytest.mark.parametrize("kind", ["llama-64", "llama", "gpt2-64"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_every_weight_is_what_was_trained_on(
    made: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    dtype: str,
    compute: Literal["bfloat16", "float32"],
) -> None:
    monkeypatch.setitem(blocks.BLOCK_BYTES, "cpu", 1)  # 64 rows: several blocks a tensor
    base = made.base(tmp_path / "base", kind, DTYPES[dtype])
    target = "c_attn" if kind == "gpt2-64" else "v_proj"
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=[target])
    quantization = QuantizationConfig(bnb_4bit_compute_dtype=compute)
    report = merge_adapter(
        adapter=adapter, base=base, output=tmp_path / "merged", recipe="as-trained", quantization=quantization
    )
    model = quantized(base, quantization, getattr(torch, compute))
    modules = {f"{n}.weight": m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert (report.modules_merged, report.modules_round_tripped) == (2, len(modules))
    assert report.tensors_copied == len(before) - len(modules)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, weight in after.items():
        if name not in modules:
            assert torch.equal(weight, before[name])
            continue
        expected = dequantized(modules[name]).float()
        if target in name:
            a, b = (tensors[f"base_model.model.{name.removesuffix('weight')}lora_{half}.weight"] for half in "AB")
            delta = b @ a * 2
            expected += delta.T if kind == "gpt2-64" else delta
        assert torch.equal(weight, expected.to(DTYPES[dtype]))


@pytest.mark.parametrize("kind", ["llama-64", "gpt2-64"])
def test_it_speaks_as_the_adapter_on_the_quantized_base(made: Any, tmp_path: Path, kind: str) -> None:
    base = made.base(tmp_path / "base", kind)
    adapter = made.adapter(tmp_path / "adapter", base)
    quantization = QuantizationConfig(bnb_4bit_compute_dtype="float32")
    tokens = torch.arange(24)[None]
    model = quantized(base, quantization, torch.float32)
    keep_gradients_after_evaluation(model)
    trained = peft.PeftModel.from_pretrained(model, adapter)(tokens).logits
    found = {}
    for recipe in ("as-trained", "full-precision"):
        merge_adapter(adapter=adapter, base=base, output=tmp_path / recipe, recipe=recipe, quantization=quantization)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / recipe)(tokens).logits
        found[recipe] = (merged - trained).abs().max().item()
    assert found["as-trained"] < 1e-4 < 1e-2 < found["full-precision"]


@pytest.mark.parametrize("quantization", [None, QuantizationConfig(load_in_4bit=False, load_in_8bit=True)])
def test_a_base_that_was_not_4_bit_is_refused(
    made: Any, tmp_path: Path, quantization: QuantizationConfig | None
) -> None:
    base = made.base(tmp_path / "base")
    adapter = made.adapter(tmp_path / "adapter", base)
    with pytest.raises(MergeError, match="quantized to 4 bits"):
        merge_adapter(
            adapter=adapter, base=base, output=tmp_path / "merged", recipe="as-trained", quantization=quantization
        )
