"""Packed equals alone, and packed equals TRL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.training.exchange import LocalExchange, Outcome, TrialSpec
from rankloom.training.resident import load_resident_base

Run = Callable[..., LocalExchange]
MakeTrial = Callable[..., TrialSpec]

# Mixed in all that a slot has of its own; with four slots they enter and leave at different steps.
CONFIGURATIONS: list[dict[str, Any]] = [
    {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.0, "max_steps": 7},
    {"r": 8, "target_modules": "attention-qv", "lora_dropout": 0.2, "max_steps": 3, "seed": 1},
    {"r": 2, "target_modules": "mlp", "use_rslora": True, "max_steps": 5, "gradient_accumulation_steps": 3, "seed": 2},
    {"r": 16, "target_modules": "attention", "per_device_train_batch_size": 1, "max_steps": 9, "weight_decay": 0.1},
    {"r": 3, "target_modules": "q_proj+down_proj", "lr_scheduler_type": "cosine", "max_steps": 6, "seed": 3},
    {"r": 8, "target_modules": "all-linear", "lora_dropout": 0.5, "gradient_accumulation_steps": 2, "max_steps": 4},
    {"r": 1, "target_modules": "o_proj", "learning_rate": 5e-2, "max_grad_norm": 10.0, "max_steps": 8, "seed": 4},
    {"r": 4, "target_modules": "all-linear", "optim": "sgd", "learning_rate": 1.0, "max_steps": 5, "seed": 5},
    {"r": 4, "target_modules": "mlp", "per_device_train_batch_size": 7, "max_steps": 13, "warmup_ratio": 0.5},
]


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    assert outcome.adapter is not None, outcome.message
    return dict(load_file(outcome.adapter / "adapter_model.safetensors"))


def figures(exchange: LocalExchange, name: str) -> list[dict[str, Any]]:
    metrics = [*exchange.reports[name], exchange.outcomes[name].metrics]
    volatile = ("wall_s", "peak_memory_bytes")
    return [{key: value for key, value in each.items() if key not in volatile} for each in metrics]


def flat(outcome: Outcome) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(weights(outcome).items())])


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_packed_equals_alone_bit_by_bit(
    tiny_model: Path, trial: MakeTrial, run_packed: Run, compute_dtype: Any, load_in_4bit: bool
) -> None:
    quantization = QuantizationConfig(load_in_4bit=load_in_4bit, bnb_4bit_compute_dtype=compute_dtype)
    training = TrainingConfig(eval_steps=2, max_length=48)
    base = load_resident_base(tiny_model, quantization, training)
    specs = [trial(f"t{number}", **changes) for number, changes in enumerate(CONFIGURATIONS)]
    packed = run_packed(base, *specs, slots=4, training=training)
    for spec in specs:
        alone = run_packed(base, spec, slots=1, training=training)
        name = spec.trial_id
        assert packed.outcomes[name].status == "completed", packed.outcomes[name].message
        assert figures(packed, name) == figures(alone, name)
        together, apart = weights(packed.outcomes[name]), weights(alone.outcomes[name])
        assert together.keys() == apart.keys()
        assert [key for key in together if not torch.equal(together[key], apart[key])] == []
    base.assert_unchanged()


def test_grouped_products_differ_in_the_last_bits_only(tiny_model: Path, trial: MakeTrial, run_packed: Run) -> None:
    training = TrainingConfig(eval_steps=2, max_length=48)
    base = load_resident_base(tiny_model, QuantizationConfig(bnb_4bit_compute_dtype="float32"), training)
    specs = [trial(f"t{number}", **changes) for number, changes in enumerate(CONFIGURATIONS)]
    packed = run_packed(base, *specs, slots=4, training=training, grouped=True)
    for spec in specs:
        name = spec.trial_id
        for alone in (
            run_packed(base, spec, slots=1, training=training, grouped=True),
            run_packed(base, spec, slots=1, training=training, grouped=False),
        ):
            for left, right in zip(figures(packed, name), figures(alone, name), strict=True):
                for loss in ("eval_loss", "train_loss"):
                    assert left[loss] == pytest.approx(right[loss], rel=1e-6)
            together, apart = flat(packed.outcomes[name]), flat(alone.outcomes[name])
            assert float((together - apart).norm() / apart.norm()) < 1e-6


def test_packed_equals_trl(tiny_model: Path, trial: MakeTrial, run_packed: Run, run_trials: Run) -> None:
    """The first loss agrees to float32's precision; Adam turns rounding of near-zero gradients into steps of full
    size (B begins at zero), so that the curves part slowly: 1e-4 of the loss and 1e-2 of the gradient norm in 30 steps.
    """
    training = TrainingConfig(max_steps=30, eval_steps=1, max_length=48, gradient_accumulation_steps=2)
    base = load_resident_base(tiny_model, QuantizationConfig(bnb_4bit_compute_dtype="float32"), training)
    shared = {"lora_dropout": 0.0, "learning_rate": 1e-3}
    specs = [trial("a", **shared), trial("b", **shared, seed=3, target_modules="attention", r=8, use_rslora=True)]
    reference, packed = (
        run_trials(base, *specs, training=training),
        run_packed(base, *specs, slots=2, training=training),
    )
    for name in ("a", "b"):
        curves = list(zip(figures(reference, name), figures(packed, name), strict=True))
        for left, right in curves:
            assert right["train_loss"] == pytest.approx(left["train_loss"], rel=1e-4)
            assert right["eval_loss"] == pytest.approx(left["eval_loss"], rel=1e-4)
            assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-2)
            for exact in ("steps", "epoch", "learning_rate", "train_tokens"):
                assert right[exact] == pytest.approx(left[exact], rel=1e-12)
        assert curves[0][1]["train_loss"] == pytest.approx(curves[0][0]["train_loss"], rel=1e-6)
        drop = curves[0][0]["eval_loss"] - curves[-1][0]["eval_loss"]
        assert drop > 0.05, "the curves must move, for their agreement to say anything"
