"""Which engine trains on a base, and with how many slots."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from rankloom.config import TrainingConfig
from rankloom.errors import TrainingError
from rankloom.training.exchange import TrialSpec
from rankloom.training.memory import available_bytes, peak_of
from rankloom.training.packed.engine import PackedEngine, rows_of, targets_of
from rankloom.training.packed.layout import Row
from rankloom.training.packed.model import PackedModel
from rankloom.training.packed.planner import CPU_TOKENS, Probe, SlotPlan, plan_slots
from rankloom.training.packed.slot import ELEMENTWISE, Slot
from rankloom.training.resident import ResidentBase
from rankloom.training.trial import is_out_of_memory, release_memory, varied

# Of a row's loss in a pack against the model's own, and of its hidden states beside other rows against alone: bfloat16
# products round in other places when the shapes are others.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2}


def build_engine(
    name: str | None,
    *,
    base: ResidentBase,
    train_dataset: Dataset,
    eval_dataset: Dataset,
    training: TrainingConfig,
    adapters: Path,
    checkpoints: Path,
    slots: int | None,
    most_slots: int,
    largest: dict[str, Any],
) -> tuple[Any, int, str]:
    """Build the engine of a lane.

    Args:
        name: 'packed', 'trl', or None for packed where it applies.
        base: The resident base.
        train_dataset: Rows of `input_ids` and `labels`.
        eval_dataset: Held-out rows of the same.
        training: Settings that the trials share.
        adapters: Folder for finished adapters.
        checkpoints: Folder for the states of trials in training.
        slots: Trials trained at once; None measures.
        most_slots: More would never be filled.
        largest: Configuration of the largest adapter that is to be expected, to measure with.

    Returns:
        The engine, its slots, and a sentence on why it is this engine with so many slots.

    Raises:
        TrainingError: Packing was asked for, and does not apply.
    """
    if name == "trl":
        reason: str | None = "engine is 'trl'"
    else:
        reason = uncovered(base, training, rows_of(train_dataset.select(range(min(2, len(train_dataset))))))
    if reason is not None:
        if name == "packed":
            raise TrainingError(f"engine 'packed' does not cover this search: {reason}; set engine to 'trl'")
        from rankloom.training.trl import TrlEngine

        engine = TrlEngine(
            base=base, train_dataset=train_dataset, eval_dataset=eval_dataset, training=training, adapters=adapters
        )
        return engine, 1, f"one trial at a time with TRL: {reason}"
    if slots is None:
        plan = measured_plan(base, training, rows_of(train_dataset), largest, most_slots)
    else:
        plan = SlotPlan(slots=slots, reason="slots_per_lane says so")
    packed = PackedEngine(
        base=base,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        training=training,
        adapters=adapters,
        checkpoints=checkpoints,
        slots=plan.slots,
    )
    return packed, plan.slots, f"{plan.slots} slot{'s' * (plan.slots != 1)}: {plan.reason}"


def uncovered(base: ResidentBase, training: TrainingConfig, rows: Sequence[Row]) -> str | None:
    """Say why packing does not apply to a search, or None where it does.

    The base itself is tried. In a pack, rows must have the loss that they have in the model's own forward pass, which
    shows positions or a head that packing does not know; and the hidden states that they have in a pack of their own,
    which shows attention that looks across rows. So neither shows in a search's results.

    Args:
        base: The resident base.
        training: Settings that the trials share.
        rows: A few rows to try it with.
    """
    if base.compute_dtype not in TOLERANCES:
        return f"its compute dtype is {base.compute_dtype}, whose loss scaling is TRL's"
    if training.optim is not None and training.optim not in ELEMENTWISE:
        return f"optimizer {training.optim} does not treat each number by itself"
    alone = [_alone(base, row) for row in rows]
    # Planned fault tolerance: whatever a model's code refuses to do with a pack is why it is not packed.
    try:
        model = PackedModel(base)
        try:
            together = [nll for (nll,) in model.nll([(None, [row]) for row in rows])]
            seen = model.hidden_of(rows)
            apart = [model.hidden_of([row])[0] for row in rows]
        finally:
            model.close()
    except (ValueError, RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        return f"{type(base.model).__name__} cannot be packed: {' '.join(str(error).split())[:200]}"
    tolerance = TOLERANCES[base.compute_dtype]
    for left, right in zip(alone, together, strict=True):
        if abs(left - right) > tolerance * abs(left):
            return f"{type(base.model).__name__} gives a row the loss {right:.4f} in a pack and {left:.4f} alone"
    for beside, by_itself in zip(seen, apart, strict=True):
        if float((beside - by_itself).norm()) > tolerance * float(by_itself.norm()):
            return f"{type(base.model).__name__} lets rows of a pack see each other"
    return None


def measured_plan(
    base: ResidentBase, training: TrainingConfig, rows: Sequence[Row], largest: dict[str, Any], most: int
) -> SlotPlan:
    """Measure a step's memory on the longest rows, and plan slots from it and from the mean row."""
    training = varied(training, largest)
    batch = sorted(rows, key=lambda row: len(row[0]))[-training.per_device_train_batch_size :]
    device = base.model.device

    def probe(slots: int) -> Probe | None:
        began = 0.0

        def work() -> None:
            nonlocal began
            with tempfile.TemporaryDirectory(prefix="rankloom-") as scratch:
                some = [
                    Slot(
                        TrialSpec(trial_id="probe", number=number, params={**largest, "seed": number}),
                        base,
                        training,
                        len(rows),
                        Path(scratch),
                    )
                    for number in range(slots)
                ]
            began = time.monotonic()
            losses = model.train([(slot, batch, sum(map(targets_of, batch))) for slot in some])
            for slot, loss in zip(some, losses, strict=True):
                slot.add_loss(loss, 0)
                slot.take_step()

        # Planned fault tolerance: what does not fit is what the probe is to find.
        try:
            peak = peak_of(work, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            release_memory()
        return Probe(seconds=time.monotonic() - began, bytes=peak)

    model = PackedModel(base)
    try:
        if device.type == "cuda":
            probe(1)  # the first step compiles and allocates
        return plan_slots(
            probe,
            most=most,
            tokens_per_slot=round(sum(len(ids) for ids, _ in rows) / len(rows) * len(batch)),
            available_bytes=available_bytes(device),
            token_budget=None if device.type == "cuda" else CPU_TOKENS,
        )
    finally:
        model.close()


def _alone(base: ResidentBase, row: Row) -> float:
    from rankloom.training.evaluation import evaluate_loss

    rows = [{"input_ids": list(row[0]), "labels": list(row[1])}]
    return evaluate_loss(base.model, rows, batch_size=1, autocast_dtype=base.compute_dtype).row_nll[0]
