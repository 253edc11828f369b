"""What happens where memory runs out: fewer trials at once, no lost step, and nobody fails for another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from rankloom.config import TrainingConfig
from rankloom.training.exchange import LocalExchange, Outcome, TrialSpec
from rankloom.training.packed.model import PackedModel
from rankloom.training.packed.slot import Slot
from rankloom.training.resident import ResidentBase

Run = Callable[..., LocalExchange]
MakeTrial = Callable[..., TrialSpec]
Alike = Callable[[Outcome, Outcome], bool]
SIX = TrainingConfig(max_steps=6, eval_steps=2, max_length=48)  # as `alone` trains


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], bool]], list[list[str]]]:
    """Lets training passes run out of memory, after the gradients are there; keeps which trials were in each."""

    def run_out(fits: Callable[[list[str]], bool]) -> list[list[str]]:
        seen: list[list[str]] = []
        train = PackedModel.train

        def limited(self: PackedModel, work: Sequence[tuple[Slot, Any, int]]) -> list[torch.Tensor]:
            names = [slot.spec.trial_id for slot, *_ in work]
            seen.append(names)
            losses = train(self, work)
            if not fits(names):
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")
            return losses

        monkeypatch.setattr(PackedModel, "train", limited)
        return seen

    return run_out


def test_where_memory_runs_out_fewer_run_at_once(
    resident: ResidentBase,
    trial: MakeTrial,
    run_packed: Run,
    alone: Callable[..., Outcome],
    ended_alike: Alike,
    passes: Callable[..., list[list[str]]],
) -> None:
    specs = [trial(f"t{seed}", seed=seed, gradient_accumulation_steps=1 + seed % 2) for seed in range(5)]
    expected = {spec.trial_id: alone(resident, spec) for spec in specs}
    # The third pass falls into the middle of a step of two batches.
    seen = passes(lambda names: len(names) <= 2 or len(seen) < 3)
    exchange = run_packed(resident, *specs, slots=4, training=SIX)
    assert [len(names) for names in seen[:4]] == [4, 4, 4, 2]
    assert max(len(names) for names in seen[3:]) == 2
    for name, outcome in expected.items():
        assert ended_alike(exchange.outcomes[name], outcome)


def test_a_trial_too_large_for_memory_fails_alone(
    resident: ResidentBase,
    trial: MakeTrial,
    run_packed: Run,
    alone: Callable[..., Outcome],
    ended_alike: Alike,
    passes: Callable[..., list[list[str]]],
) -> None:
    specs = [trial(f"t{seed}", seed=seed) for seed in range(6)]
    expected = {spec.trial_id: alone(resident, spec) for spec in specs}
    seen = passes(lambda names: "hungry" not in names)
    exchange = run_packed(resident, *specs[:2], trial("hungry"), *specs[2:], slots=4, training=SIX)
    hungry = exchange.outcomes["hungry"]
    assert (hungry.status, hungry.adapter) == ("failed", None)
    assert hungry.message == "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.; lower r or the batch size"
    failed_at = seen.index(["hungry"])
    assert max(len(names) for names in seen[1:failed_at]) == 2
    assert max(len(names) for names in seen[failed_at:]) == 4
    for name, outcome in expected.items():
        assert ended_alike(exchange.outcomes[name], outcome)


def test_memory_that_runs_out_in_an_evaluation(
    resident: ResidentBase,
    trial: MakeTrial,
    run_packed: Run,
    alone: Callable[..., Outcome],
    ended_alike: Alike,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    specs = [trial(f"t{seed}", seed=seed) for seed in range(3)]
    expected = {spec.trial_id: alone(resident, spec) for spec in specs}
    measure = PackedModel.nll

    def limited(self: PackedModel, work: Sequence[tuple[Slot, Any]]) -> list[list[float]]:
        if len(work) > 1 or work[0][0].spec.trial_id == "hungry":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return measure(self, work)

    monkeypatch.setattr(PackedModel, "nll", limited)
    exchange = run_packed(resident, trial("hungry"), *specs, slots=4, training=SIX)
    assert exchange.outcomes["hungry"].message.startswith("out of memory: ")
    for name, outcome in expected.items():
        assert ended_alike(exchange.outcomes[name], outcome)


def test_memory_that_runs_out_in_an_optimizer(
    resident: ResidentBase, trial: MakeTrial, run_packed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Slot.take_step

    def limited(self: Slot) -> float:
        if self.spec.trial_id == "hungry":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self)

    monkeypatch.setattr(Slot, "take_step", limited)
    exchange = run_packed(resident, trial("hungry"), trial("one"), slots=2, training=SIX)
    assert exchange.outcomes["hungry"].message.startswith("out of memory: ")
    assert exchange.outcomes["one"].status == "completed"
