from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.errors import TrainingError
from rankloom.training.engines import build_engine, uncovered
from rankloom.training.evaluation import evaluate_loss
from rankloom.training.packed.engine import PackedEngine, rows_of
from rankloom.training.packed.layout import Row
from rankloom.training.packed.model import PackedModel
from rankloom.training.resident import ResidentBase, load_resident_base
from rankloom.training.trl import TrlEngine

Family = Callable[..., ResidentBase]
PLAIN = QuantizationConfig(load_in_4bit=False, bnb_4bit_compute_dtype="float32")
NF4 = QuantizationConfig(bnb_4bit_compute_dtype="float32")
# Rows long enough for a sliding window, and a short one.
ROWS: list[Row] = [(ids, [-100, *ids[1:]]) for ids in ([3 + 7 * at % 300 for at in range(n)] for n in (40, 2, 23))]


FAMILIES: dict[str, tuple[str, QuantizationConfig, dict[str, Any]]] = {
    "Llama": ("llama", PLAIN, {}),
    "Qwen2": ("qwen2", NF4, {}),
    "Qwen3": ("qwen3", PLAIN, {}),
    "Mistral with a sliding window": ("mistral", NF4, {"sliding_window": 8}),
    "Gemma": ("gemma", PLAIN, {}),
    "Gemma3 with sliding windows": ("gemma3_text", PLAIN, {"sliding_window": 8}),
    "GPT-2": ("gpt2", PLAIN, {}),
    "GPT-2 in NF4": ("gpt2", NF4, {}),
    "Phi3": ("phi3", NF4, {}),
    "GPT-NeoX": ("gpt_neox", PLAIN, {}),
}


@pytest.mark.parametrize(("model_type", "quantization", "changes"), FAMILIES.values(), ids=FAMILIES)
def test_a_pack_is_its_rows(
    family: Family, model_type: str, quantization: QuantizationConfig, changes: dict[str, Any]
) -> None:
    base = family(model_type, quantization, **changes)
    implementation = base.model.config._attn_implementation
    assert uncovered(base, TrainingConfig(), ROWS) is None
    assert base.model.config._attn_implementation == implementation
    model = PackedModel(base)
    together = model.nll([(None, ROWS)])[0]
    model.close()
    base.model.set_attn_implementation("eager")
    alone = [
        evaluate_loss(
            base.model, [{"input_ids": ids, "labels": labels}], batch_size=1, autocast_dtype=torch.float32
        ).row_nll[0]
        for ids, labels in ROWS
    ]
    assert together == pytest.approx(alone, rel=1e-5)
    base.assert_unchanged()


UNCOVERED: dict[str, tuple[str, str, str]] = {
    "softcapped scores": ("gemma2", "float32", "Gemma2ForCausalLM cannot be packed: .* neither softcap"),
    "attention of its own": ("falcon", "float32", "FalconForCausalLM"),
    "attention of its own, roughly": ("falcon", "bfloat16", "FalconForCausalLM"),
    "a state in place of attention": ("mamba", "float32", "MambaForCausalLM"),
    "scaled logits": ("cohere", "float32", "CohereForCausalLM gives a row the loss"),
}


@pytest.mark.parametrize(
    ("model_type", "dtype", "reason"),
    [pytest.param(*case, id=name) for name, case in UNCOVERED.items()],
)
def test_a_model_that_packing_does_not_know(family: Family, model_type: str, dtype: Any, reason: str) -> None:
    base = family(model_type, QuantizationConfig(load_in_4bit=False, bnb_4bit_compute_dtype=dtype))
    found = uncovered(base, TrainingConfig(), ROWS)
    assert found is not None and re.search(reason, found), found
    assert not any(module._forward_hooks for module in base.model.modules())


@pytest.fixture
def build(rows: tuple[Dataset, Dataset], tmp_path: Path) -> Callable[..., tuple[Any, int, str]]:
    """Builds an engine of 16 slots at most; keyword arguments change what is asked for."""

    def make(base: ResidentBase, name: str | None = None, **changes: Any) -> tuple[Any, int, str]:
        options: dict[str, Any] = {
            "train_dataset": rows[0],
            "eval_dataset": rows[1],
            "training": TrainingConfig(max_steps=4, max_length=48),
            "adapters": tmp_path / "adapters",
            "checkpoints": tmp_path / "checkpoints",
            "slots": None,
            "most_slots": 16,
            "largest": {
                "r": 8,
                "lora_alpha": 16,
                "use_rslora": False,
                "lora_dropout": 0.1,
                "learning_rate": 1e-3,
                "target_modules": "all-linear",
                "seed": 0,
            },
        }
        return build_engine(name, base=base, **{**options, **changes})

    return make


Build = Callable[..., tuple[Any, int, str]]


@pytest.mark.parametrize(
    ("name", "changes", "slots", "reason"),
    [
        (None, {"slots": 3}, 3, "3 slots: slots_per_lane says so"),
        ("packed", {"slots": 1}, 1, "1 slot: slots_per_lane says so"),
        (None, {"most_slots": 1}, 1, "1 slot: there is one trial at a time"),
        (None, {"most_slots": 2}, 2, "2 slots: that is as many as the search trains at a time"),
    ],
)
def test_packed_is_the_first_choice(
    resident: ResidentBase, build: Build, name: str | None, changes: dict[str, Any], slots: int, reason: str
) -> None:
    state = torch.random.get_rng_state()
    engine, found, why = build(resident, name, **changes)
    assert isinstance(engine, PackedEngine)
    assert (engine.slots, found, why) == (slots, slots, reason)
    resident.assert_unchanged()
    assert not any(module._forward_hooks for module in resident.model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_slots_are_measured(resident: ResidentBase, build: Build, rows: tuple[Dataset, Dataset]) -> None:
    if torch.cuda.is_available():
        pytest.skip("the tokens that fill a device are known of a CPU only")
    lengths = [len(ids) for ids, _ in rows_of(rows[0])]
    _, slots, reason = build(resident, most_slots=64)
    assert slots == 1024 // round(4 * sum(lengths) / len(lengths))
    assert "about 1024 tokens a pass fill the device; a slot takes " in reason
    full = TrainingConfig(max_steps=4, max_length=48, per_device_train_batch_size=40)
    assert build(resident, training=full)[2].startswith("1 slot: one trial's ")


@pytest.mark.parametrize(
    ("training", "dtype", "reason"),
    [
        ({"optim": "adafactor"}, "float32", "optimizer adafactor does not treat each number by itself"),
        ({}, "float16", "its compute dtype is torch.float16, whose loss scaling is TRL's"),
    ],
)
def test_trl_where_packing_does_not_apply(
    tiny_model: Path, build: Build, training: dict[str, Any], dtype: Any, reason: str
) -> None:
    base = load_resident_base(tiny_model, QuantizationConfig(bnb_4bit_compute_dtype=dtype), TrainingConfig())
    changes = {"training": TrainingConfig(max_steps=4, max_length=48, **training)}
    engine, slots, why = build(base, **changes, slots=4)
    assert isinstance(engine, TrlEngine)
    assert (slots, why) == (1, f"one trial at a time with TRL: {reason}")
    with pytest.raises(TrainingError, match="engine 'packed' does not cover this search: .*; set engine to 'trl'"):
        build(base, "packed", **changes)


def test_trl_where_it_is_asked_for(resident: ResidentBase, build: Build) -> None:
    engine, found, why = build(resident, "trl")
    assert isinstance(engine, TrlEngine)
    assert (found, why) == (1, "one trial at a time with TRL: engine is 'trl'")
