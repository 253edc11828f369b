from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.errors import ModelError, TrainingError
from rankloom.training.evaluation import autocast, evaluate_loss
from rankloom.training.exchange import LocalExchange, TrialSpec
from rankloom.training.resident import (
    ResidentBase,
    assert_quantized,
    base_checksum,
    compute_dtype_for,
    load_resident_base,
    training_device,
)

CPU = torch.device("cpu")


def quantized_layers(model: torch.nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}


def test_the_base_is_nf4_with_double_quantization(resident: ResidentBase) -> None:
    layers = quantized_layers(resident.model)
    assert len(layers) == 2 * 7
    for layer in layers.values():
        state = layer.weight.quant_state
        assert layer.weight.dtype == torch.uint8 and layer.weight.numel() * 2 == layer.in_features * layer.out_features
        assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
        assert layer.compute_dtype == resident.compute_dtype == compute_dtype_for("auto", training_device())
    assert type(resident.model.lm_head).__name__ == "Linear"
    assert not any(parameter.requires_grad for parameter in resident.model.parameters())


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}, "Linear4bit"),
        ({"load_in_4bit": False, "load_in_8bit": True}, "Linear8bitLt"),
        ({"load_in_4bit": False}, "Linear"),
        ({"bnb_4bit_compute_dtype": "float32"}, "Linear4bit"),
    ],
    ids=["fp4", "int8", "unquantized", "fp32"],
)
def test_other_precisions_are_what_was_asked_for(tiny_model: Path, options: dict[str, Any], kind: str) -> None:
    resident = load_resident_base(tiny_model, QuantizationConfig(**options), TrainingConfig())
    assert resident.leaf_modules["model.layers.0.self_attn.q_proj"] == kind


WRONG = {
    "another data type": ({"bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type should be fp4, the loaded base has nf4"),
    "single quantization": ({"bnb_4bit_use_double_quant": False}, "bnb_4bit_use_double_quant should be False"),
    "8 bits": ({"load_in_4bit": False, "load_in_8bit": True}, "should be Linear8bitLt, got Linear4bit"),
    "no quantization": ({"load_in_4bit": False}, "should be unquantized"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_a_base_quantized_otherwise_is_refused(resident: ResidentBase, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        assert_quantized(resident.model, QuantizationConfig(**options), resident.compute_dtype)


def test_another_compute_dtype_is_refused(resident: ResidentBase) -> None:
    with pytest.raises(TrainingError, match=r"layers\.0.*bnb_4bit_compute_dtype should be torch\.float16"):
        assert_quantized(resident.model, QuantizationConfig(), torch.float16)
    quantized_layers(resident.model)["model.layers.1.mlp.up_proj"].compute_dtype = torch.float64
    with pytest.raises(TrainingError, match=r"layers\.1\.mlp\.up_proj: .* has torch\.float64"):
        assert_quantized(resident.model, QuantizationConfig(), resident.compute_dtype)


def test_a_base_that_was_not_quantized_at_all_is_refused(tiny_model: Path) -> None:
    plain = load_resident_base(tiny_model, QuantizationConfig(load_in_4bit=False), TrainingConfig())
    with pytest.raises(TrainingError, match="should hold Linear4bit layers, but none is"):
        assert_quantized(plain.model, QuantizationConfig(), plain.compute_dtype)


def test_a_folder_that_is_no_model(tmp_path: Path, tiny_model: Path) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(ModelError, match=r"cannot load .*broken as a causal language model"):
        load_resident_base(broken, QuantizationConfig(), TrainingConfig())


def one_bit(tensor: torch.Tensor) -> None:
    data = tensor.data.view(-1)[:1].contiguous().view(torch.uint8)
    data[0] ^= 1
    tensor.data.view(-1)[:1] = data.view(tensor.dtype)


CHANGES: dict[str, Callable[[torch.nn.Module], object]] = {
    "a packed weight": lambda model: one_bit(quantized_layers(model)["model.layers.1.mlp.up_proj"].weight),
    "a quantization constant": lambda model: one_bit(
        quantized_layers(model)["model.layers.0.self_attn.k_proj"].weight.quant_state.absmax
    ),
    "a constant of the constants": lambda model: one_bit(
        quantized_layers(model)["model.layers.0.self_attn.k_proj"].weight.quant_state.state2.absmax
    ),
    "the embedding": lambda model: one_bit(model.get_parameter("model.embed_tokens.weight")),
    "a norm": lambda model: one_bit(model.get_parameter("model.norm.weight")),
    "a tensor more": lambda model: model.register_buffer("extra", torch.zeros(1)),
    "a shape": lambda model: setattr(
        model.get_parameter("model.norm.weight"), "data", model.get_parameter("model.norm.weight").data.view(1, -1)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_one_changed_bit_is_noticed(resident: ResidentBase, change: Callable[[torch.nn.Module], object]) -> None:
    resident.assert_unchanged()
    change(resident.model)
    with pytest.raises(TrainingError, match=r"resident base .* changed during training"):
        resident.assert_unchanged()


def test_the_checksum_is_that_of_the_weights(tiny_model: Path, resident: ResidentBase) -> None:
    again = load_resident_base(tiny_model, QuantizationConfig(), TrainingConfig())
    assert again.checksum == resident.checksum == base_checksum(resident.model)


def gradient_norm(model: torch.nn.Module, rows: Dataset, dtype: torch.dtype) -> float:
    model.train()
    model.zero_grad()
    ids = torch.tensor([rows[0]["input_ids"]])
    with autocast(CPU, dtype):
        model(input_ids=ids, labels=ids).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack([gradient.float().norm() for gradient in gradients])))


def adapted(base: ResidentBase) -> torch.nn.Module:
    torch.manual_seed(0)
    return get_peft_model(base.model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_evaluation_leaves_the_gradient_as_it_was(
    tiny_model: Path, rows: tuple[Dataset, Dataset], dtype: str
) -> None:
    base = load_resident_base(
        tiny_model, QuantizationConfig(bnb_4bit_compute_dtype=dtype), TrainingConfig(), device=CPU
    )
    model = adapted(base)
    before = gradient_norm(model, rows[0], base.compute_dtype)
    evaluate_loss(model, rows[1], batch_size=4, autocast_dtype=base.compute_dtype)
    assert gradient_norm(model, rows[0], base.compute_dtype) == before


def test_without_the_mend_an_evaluation_spoils_the_gradient(tiny_model: Path, rows: tuple[Dataset, Dataset]) -> None:
    """Once this fails, bitsandbytes is mended and `keep_gradients_after_evaluation` can go."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes repacks 4-bit weights only on a CPU with AVX512-BF16")
    base = load_resident_base(
        tiny_model, QuantizationConfig(bnb_4bit_compute_dtype="bfloat16"), TrainingConfig(), device=CPU
    )
    model = adapted(base)
    before = gradient_norm(model, rows[0], base.compute_dtype)
    for layer in quantized_layers(base.model).values():
        layer.support_avx512bf16_for_cpu = True
    evaluate_loss(model, rows[1], batch_size=4, autocast_dtype=base.compute_dtype)
    assert gradient_norm(model, rows[0], base.compute_dtype) != pytest.approx(before, rel=0.01)


@pytest.mark.parametrize("options", [{}, {"load_in_4bit": False, "load_in_8bit": True}], ids=["nf4", "int8"])
@pytest.mark.parametrize("model", ["tiny_model", "gpt2"])
def test_trials_leave_the_base_as_it_was(
    request: pytest.FixtureRequest,
    model: str,
    options: dict[str, Any],
    trial: Callable[..., TrialSpec],
    run_trials: Callable[..., LocalExchange],
) -> None:
    base = load_resident_base(request.getfixturevalue(model), QuantizationConfig(**options), TrainingConfig())
    modules = {name: type(module) for name, module in base.model.named_modules()}
    exchange = run_trials(
        base,
        trial("first"),
        trial("diverges", learning_rate=1e30),
        trial("lacks", target_modules="no_such_module"),
        trial("last", target_modules="attention"),
    )
    found = {name: outcome.status for name, outcome in exchange.outcomes.items()}
    assert found == {"first": "completed", "diverges": "failed", "lacks": "failed", "last": "completed"}
    base.assert_unchanged()
    assert {name: type(module) for name, module in base.model.named_modules()} == modules
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
