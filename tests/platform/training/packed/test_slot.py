from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import set_seed

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.errors import TrainingError
from rankloom.training.evaluation import evaluate_loss
from rankloom.training.packed.checkpoint import read_state, write_state
from rankloom.training.packed.engine import rows_of
from rankloom.training.packed.model import PackedModel
from rankloom.training.packed.slot import ELEMENTWISE, Slot
from rankloom.training.resident import ResidentBase, load_resident_base
from rankloom.training.trial import lora_config

SlotOf = Callable[..., Slot]
TakeSteps = Callable[..., list[float]]


@pytest.mark.parametrize(
    "options",
    [{"load_in_4bit": False}, {"bnb_4bit_compute_dtype": "float32"}, {"bnb_4bit_compute_dtype": "bfloat16"}],
    ids=["unquantized", "nf4", "nf4 in bfloat16"],
)
@pytest.mark.parametrize("model", ["tiny_model", "gpt2"])
@pytest.mark.parametrize("changes", [{}, {"target_modules": "mlp", "r": 6, "seed": 11}], ids=["all", "mlp"])
def test_an_adapter_begins_as_pefts(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    slot_of: SlotOf,
    model: str,
    options: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    base = load_resident_base(request.getfixturevalue(model), QuantizationConfig(**options), TrainingConfig())
    slot = slot_of(base, **changes)
    slot.save_adapter(tmp_path / "adapter")
    found = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    set_seed(slot.spec.params["seed"])
    expected = get_peft_model_state_dict(get_peft_model(base.model, lora_config(base, slot.spec.params)))
    assert found.keys() == expected.keys()
    # On a 4-bit base PEFT rounds what it drew to the compute dtype, before it goes back to fp32.
    dtype = torch.float32 if base.compute_dtype == torch.float32 or "load_in_4bit" in options else base.compute_dtype
    assert [name for name in found if not torch.equal(found[name].to(dtype), expected[name].to(dtype))] == []


def test_making_a_slot_draws_nothing_from_others(resident: ResidentBase, slot_of: SlotOf) -> None:
    before = torch.random.get_rng_state()
    slot_of(resident)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True, "r": 8}, {"target_modules": "q_proj+down_proj"}])
def test_a_saved_adapter_is_pefts(
    tiny_model: Path,
    resident_fp32: ResidentBase,
    slot_of: SlotOf,
    take_steps: TakeSteps,
    rows: tuple[Dataset, Dataset],
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    slot = slot_of(resident_fp32, **changes)
    model = PackedModel(resident_fp32)
    (before,) = model.nll([(slot, rows_of(rows[1]))])
    take_steps(model, slot, 6)
    (nll,) = model.nll([(slot, rows_of(rows[1]))])
    slot.save_adapter(tmp_path / "adapter")
    fresh = load_resident_base(tiny_model, QuantizationConfig(bnb_4bit_compute_dtype="float32"), TrainingConfig())
    loaded = PeftModel.from_pretrained(fresh.model, tmp_path / "adapter")
    expected = evaluate_loss(loaded, rows[1], batch_size=1, autocast_dtype=torch.float32).row_nll
    assert nll == pytest.approx(expected, rel=1e-5)
    assert sum(nll) < sum(before) - 10


@pytest.mark.parametrize("optim", ELEMENTWISE)
def test_a_state_goes_on_bit_by_bit(
    resident: ResidentBase, slot_of: SlotOf, take_steps: TakeSteps, tmp_path: Path, optim: str
) -> None:
    changes = {"optim": optim, "lr_scheduler_type": "cosine", "warmup_ratio": 0.2, "gradient_accumulation_steps": 2}
    model = PackedModel(resident)
    slot = slot_of(resident, learning_rate=1e-3, weight_decay=0.1, **changes)
    first = take_steps(model, slot, 4)
    slot.measured(first[-1], 1)
    state = tmp_path / "states" / "trial.safetensors"
    write_state(state, slot.state())
    expected = take_steps(model, slot, 6)
    assert len(set(expected)) == 6

    again = slot_of(resident, learning_rate=1e-3, weight_decay=0.1, **changes)
    again.restore(*read_state(state))
    assert again.step == 4
    assert again.metrics["eval_loss"] == first[-1]
    assert take_steps(model, again, 6) == expected
    assert torch.equal(again.flat, slot.flat)
    assert again.train_tokens == slot.train_tokens
    model.close()


@pytest.mark.parametrize(
    "schedule",
    ["constant_with_warmup", "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"],
)
def test_a_schedule_goes_on(resident: ResidentBase, slot_of: SlotOf, schedule: str) -> None:
    def rates(slot: Slot, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            slot.take_step()  # of a gradient of zeros
            slot.measured(1.0, 1)
            found.append(slot.metrics["learning_rate"])
        return found

    slot = slot_of(resident, lr_scheduler_type=schedule, warmup_ratio=0.3)
    early = rates(slot, 2)
    again = slot_of(resident, lr_scheduler_type=schedule, warmup_ratio=0.3)
    again.restore(*slot.state())
    late = rates(slot, 8)
    assert rates(again, 8) == late
    assert schedule == "constant" or len({*early, *late}) > 2


def test_a_state_of_another_shape_is_refused(resident: ResidentBase, slot_of: SlotOf) -> None:
    state = slot_of(resident, r=4).state()
    other = slot_of(resident, r=8)
    with pytest.raises(ValueError, match=r"an adapter of \d+ elements, this trial's has .* only with the r and target"):
        other.restore(*state)
    assert other.step == 0


def test_numbers_that_are_not_finite_update_nothing(resident: ResidentBase, slot_of: SlotOf) -> None:
    slot = slot_of(resident)
    before = slot.flat.detach().clone()
    slot.add_loss(torch.tensor(float("nan")), 1)
    with pytest.raises(TrainingError, match="train_loss is nan at step 1: lower learning_rate or max_grad_norm"):
        slot.take_step()
    slot.rewind()
    assert slot.flat.grad is not None
    slot.flat.grad[0] = float("inf")
    with pytest.raises(TrainingError, match="grad_norm is inf at step 1"):
        slot.take_step()
    assert slot.step == 0
    slot.rewind()
    slot.take_step()
    slot.step = 1
    with pytest.raises(TrainingError, match="eval_loss is inf at step 1"):
        slot.measured(float("inf"), 1)
    assert slot.flat.isfinite().all() and torch.equal(slot.flat, before)
