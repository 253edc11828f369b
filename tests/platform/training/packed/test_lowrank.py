from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.training.packed.factors import LowRank, Wearer
from rankloom.training.packed.layout import Span
from rankloom.training.packed.lowrank import LowRankPaths
from rankloom.training.packed.model import PackedModel
from rankloom.training.packed.slot import Slot
from rankloom.training.resident import load_resident_base

SPANS = (Span(0, 5), Span(5, 16))  # a token more belongs to nobody
TOKENS = 17


class Holder(torch.nn.Module):
    """A model of two layers side by side, which may be the same one."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.other = copy.deepcopy(layer)


@pytest.fixture
def layer_of(tiny_model: Path, gpt2: Path) -> Callable[[str], torch.nn.Module]:
    """Makes a frozen layer of each kind, wider than high."""

    def make(kind: str) -> torch.nn.Module:
        path, name = (
            (gpt2, "transformer.h.0.mlp.c_fc") if kind == "Conv1D" else (tiny_model, "model.layers.0.mlp.up_proj")
        )
        quantization = QuantizationConfig(load_in_4bit=kind == "Linear4bit", bnb_4bit_compute_dtype="float32")
        layer = load_resident_base(path, quantization, TrainingConfig()).model.get_submodule(name)
        assert type(layer).__name__ == kind
        return layer

    return make


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "Linear4bit"])
def test_forward_and_gradients_are_those_of_peft(
    layer_of: Callable[[str], torch.nn.Module], kind: str, use_rslora: bool, grouped: bool
) -> None:
    layer = layer_of(kind)
    torch.manual_seed(0)
    x = torch.randn(1, TOKENS, 64, requires_grad=True)
    wearers, outputs, adapters = [], [], []
    for span, r in zip(SPANS, (4, 3), strict=True):
        config = LoraConfig(r=r, lora_alpha=7, use_rslora=use_rslora, target_modules=["layer"], init_lora_weights=False)
        reference = inject_adapter_in_model(config, Holder(copy.deepcopy(layer))).layer
        assert isinstance(reference, LoraLayer)
        a, b = reference.lora_A["default"].weight, reference.lora_B["default"].weight
        adapters.append((a, b))
        outputs.append(reference(x[:, span.slice]))
        gradients = torch.zeros_like(a), torch.zeros_like(b)
        scaling = 7 / (math.sqrt(r) if use_rslora else r)
        wearers.append(Wearer(span, {"layer": LowRank(a.detach(), b.detach(), *gradients, scaling)}))
    outputs.append(layer(x[:, SPANS[-1].end :]))
    expected = torch.cat(outputs, dim=1)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    expected_x, x.grad = x.grad, None

    holder = Holder(layer)
    paths = LowRankPaths(holder, ["layer"], torch.float32, grouped=grouped)
    with paths.worn(wearers):
        found = holder.layer(x)
        (found * weight).sum().backward()
    pairs = [(found, expected), (x.grad, expected_x)]
    for wearer, (a, b) in zip(wearers, adapters, strict=True):
        pairs += [(wearer.factors["layer"].grad_a, a.grad), (wearer.factors["layer"].grad_b, b.grad)]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)

    with torch.no_grad():
        assert torch.equal(holder.layer(x), layer(x)) and not torch.equal(found, layer(x))
        paths.remove()
        assert not holder.layer._forward_hooks


def identity_path() -> LowRank:
    """Factors that add to a layer's output what comes through the dropout."""
    zeros = torch.zeros(64, 64), torch.zeros(64, 64)
    return LowRank(torch.eye(64), torch.eye(64), *zeros, 1.0)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_dropout_mask_follows_from_seed_and_layer_alone(grouped: bool) -> None:
    silent = torch.nn.Linear(64, 64, bias=False).requires_grad_(False)
    silent.weight.zero_()
    holder = Holder(silent)
    paths = LowRankPaths(holder, ["layer", "other"], torch.float32, grouped=grouped)
    ones = torch.ones(1, 100, 64)

    def seen(name: str, seed: int, start: int = 0, others: tuple[Wearer, ...] = ()) -> torch.Tensor:
        factors = {"layer": identity_path(), "other": identity_path()}
        wearer = Wearer(Span(start, start + 50), factors, dropout=0.25, seed=seed)
        with paths.worn([*others, wearer]), torch.no_grad():
            return holder.get_submodule(name)(ones)[0, start : start + 50]

    mask = seen("layer", seed=3)
    torch.testing.assert_close(mask.unique(), torch.tensor([0.0, 4 / 3]))
    assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.03)  # of 3200
    torch.manual_seed(1)  # nothing of the process's own generator
    neighbour = Wearer(Span(0, 50), {"layer": identity_path()}, dropout=0.5, seed=3)
    assert torch.equal(seen("layer", seed=3), mask)
    assert torch.equal(seen("layer", seed=3, start=50, others=(neighbour,)), mask)
    assert not torch.equal(seen("layer", seed=4), mask)
    assert not torch.equal(seen("other", seed=3), mask)


@pytest.mark.parametrize("grouped", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    tiny_model: Path, slot_of: Callable[..., Slot], take_steps: Callable[..., list[float]], grouped: bool
) -> None:
    ends: list[tuple[Any, ...]] = []
    for gradient_checkpointing in (False, True):
        training = TrainingConfig(gradient_checkpointing=gradient_checkpointing)
        base = load_resident_base(tiny_model, QuantizationConfig(bnb_4bit_compute_dtype="float32"), training)
        assert base.model.is_gradient_checkpointing == gradient_checkpointing
        slot = slot_of(base, lora_dropout=0.3)
        model = PackedModel(base, grouped=grouped)
        losses = take_steps(model, slot, 3)
        model.close()
        ends.append((losses, slot.flat.detach()))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])
