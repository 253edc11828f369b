from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.training.evaluation import evaluate_loss
from rankloom.training.exchange import Free, LocalExchange, Orders, Outcome, Report, TrialSpec, Verdict
from rankloom.training.packed.engine import PackedEngine
from rankloom.training.resident import ResidentBase, load_resident_base

Run = Callable[..., LocalExchange]
MakeTrial = Callable[..., TrialSpec]
MakeEngine = Callable[..., PackedEngine]
Alike = Callable[[Outcome, Outcome], bool]
SIX = TrainingConfig(max_steps=6, eval_steps=2, max_length=48)  # as `alone` trains


class Told(LocalExchange):
    """Answers as it is told.

    Args:
        specs: Trials to run.
        reports: Verdicts about reports by trial and step, 'go_on' where there is none; None ends the search instead.
        steps: Verdicts given after a step, evaluated or not.
    """

    def __init__(
        self,
        specs: Sequence[TrialSpec],
        reports: Mapping[tuple[str, int], Verdict | None] | None = None,
        steps: Mapping[tuple[str, int], Verdict] | None = None,
    ) -> None:
        super().__init__(list(specs))
        self._told, self._after = dict(reports or {}), dict(steps or {})
        self._paused: set[str] = set()
        self._over = False

    def orders(self, free: Free, wait_s: float | None) -> Orders:
        orders = super().orders(free, wait_s)
        self._paused |= {name for name, verdict in orders.verdicts.items() if verdict == "pause"}
        started = {
            spec.trial_id: self._after[spec.trial_id, 0] for spec in orders.trials if (spec.trial_id, 0) in self._after
        }
        self._verdicts |= started
        over = self._over or self.reports.keys() == self.outcomes.keys() | self._paused
        return Orders(trials=orders.trials, verdicts=orders.verdicts, over=over and not orders.verdicts)

    def progress(self, spec: TrialSpec, step: int, train_loss: float) -> None:
        if (verdict := self._after.get((spec.trial_id, step))) is not None:
            self._verdicts[spec.trial_id] = verdict

    def report(self, reports: Sequence[Report]) -> None:
        super().report(reports)
        for spec, metrics in reports:
            told = self._told.get((spec.trial_id, metrics["steps"]), "go_on")
            if told is None:
                del self._verdicts[spec.trial_id]
                self._over = True
            else:
                self._verdicts[spec.trial_id] = told


FAILURES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "diverges": ({"learning_rate": 1e30}, (" at step ", "lower learning_rate")),
    "lacks its target": ({"target_modules": "c_attn"}, ("no linear module for 'c_attn'", "it has down_proj")),
    "breaks a bound": ({"per_device_train_batch_size": 0}, ("per_device_train_batch_size", "greater than")),
    "is too large": ({"r": 10**13}, ("out of memory: ", "lower r or the batch size")),
}


def test_a_failure_is_an_outcome_and_touches_no_neighbour(
    resident: ResidentBase,
    trial: MakeTrial,
    run_packed: Run,
    alone: Callable[..., Outcome],
    ended_alike: Alike,
    tmp_path: Path,
) -> None:
    neighbours = [trial("long", max_steps=12), trial("last", seed=1, lora_dropout=0.3)]
    failing = [trial(name, **changes) for name, (changes, _) in FAILURES.items()]
    specs = [neighbours[0], *failing, neighbours[1]]
    exchange = run_packed(resident, *specs, slots=3, training=SIX, checkpoints=tmp_path / "states")
    for name, (_, fragments) in FAILURES.items():
        outcome = exchange.outcomes[name]
        assert outcome.status == "failed" and outcome.adapter is None
        assert [fragment for fragment in fragments if fragment not in outcome.message] == [], outcome.message
        assert "\n" not in outcome.message
    for spec in neighbours:
        assert ended_alike(exchange.outcomes[spec.trial_id], alone(resident, spec))
    assert list((tmp_path / "states").iterdir()) == []


def test_a_trial_stops_where_it_is_told(
    resident: ResidentBase, trial: MakeTrial, run_packed: Run, alone: Callable[..., Outcome], ended_alike: Alike
) -> None:
    exchange = run_packed(resident, trial("short"), trial("long", seed=1), slots=2, training=SIX, stop={"short": 4})
    short = exchange.outcomes["short"]
    assert short.status == "stopped"
    assert [report["steps"] for report in exchange.reports["short"]] == [2, 4]
    assert short.metrics == exchange.reports["short"][-1]
    assert ended_alike(exchange.outcomes["long"], alone(resident, trial("long", seed=1)))


class Seats(LocalExchange):
    """Keeps which slot each trial trained in, in the order in which they ended."""

    def __init__(self, specs: list[TrialSpec], *, stop: dict[str, int]) -> None:
        super().__init__(specs, stop=stop)
        self.slots: list[tuple[str, int | None]] = []

    def finish(self, spec: TrialSpec, outcome: Outcome) -> None:
        super().finish(spec, outcome)
        self.slots.append((spec.trial_id, spec.slot))


def test_a_trial_takes_the_slot_that_another_left(
    resident: ResidentBase, trial: MakeTrial, packed_engine: MakeEngine
) -> None:
    specs = [trial("first"), trial("short"), trial("too large", r=10**13), trial("next", max_steps=12)]
    exchange = Seats([*specs, trial("last")], stop={"short": 2})
    packed_engine(resident, slots=2, training=SIX).run(exchange)
    assert exchange.slots == [("short", 1), ("too large", 1), ("first", 0), ("last", 0), ("next", 1)]


def test_what_is_stopped_between_evaluations_is_measured_as_it_is_saved(
    resident_fp32: ResidentBase,
    trial: MakeTrial,
    packed_engine: MakeEngine,
    tiny_model: Path,
    rows: tuple[Dataset, Dataset],
) -> None:
    steps: dict[tuple[str, int], Verdict] = {("early", 3): "stop", ("unborn", 0): "stop"}
    specs = [trial("early"), trial("unborn"), trial("long", seed=1, gradient_accumulation_steps=2)]
    exchange = Told(specs, steps=steps)
    packed_engine(resident_fp32, slots=3, training=SIX).run(exchange)
    assert {name: outcome.status for name, outcome in exchange.outcomes.items()} == {
        "early": "stopped",
        "unborn": "stopped",
        "long": "completed",
    }
    early = exchange.outcomes["early"]
    assert (early.metrics["steps"], [report["steps"] for report in exchange.reports["early"]]) == (3, [2])
    assert early.adapter is not None
    fresh = load_resident_base(tiny_model, QuantizationConfig(bnb_4bit_compute_dtype="float32"), TrainingConfig())
    model = PeftModel.from_pretrained(fresh.model, early.adapter)
    loss = evaluate_loss(model, rows[1], batch_size=8, autocast_dtype=torch.float32).loss
    assert early.metrics["eval_loss"] == pytest.approx(loss, rel=1e-6)
    assert exchange.outcomes["unborn"].adapter is None and exchange.outcomes["unborn"].metrics == {}


@pytest.mark.parametrize("verdict", ["pause", None], ids=["paused", "cut short"])
def test_a_trial_is_taken_up_where_it_was_left(
    resident: ResidentBase,
    trial: MakeTrial,
    packed_engine: MakeEngine,
    alone: Callable[..., Outcome],
    ended_alike: Alike,
    tmp_path: Path,
    verdict: Verdict | None,
) -> None:
    states = tmp_path / "states"
    one, other = trial("one"), trial("other", seed=1, max_steps=3)
    undisturbed = alone(resident, one)
    first = Told([one, other], reports={("one", 4): verdict})
    packed_engine(resident, slots=2, training=SIX, checkpoints=states).run(first)
    assert first.outcomes.keys() == {"other"}
    assert [file.name for file in states.iterdir()] == ["one.safetensors"]
    resident.assert_unchanged()

    # A paused trial's evaluation was decided upon; where the search was cut short, it is asked about again.
    again = TrialSpec(trial_id="one", number=0, params=one.params, attempt=2, decided=4 if verdict else 2)
    second = Told([trial("beside", seed=2), again])
    packed_engine(resident, slots=2, training=SIX, checkpoints=states).run(second)
    assert [report["steps"] for report in second.reports["one"]] == ([] if verdict else [4])
    if not verdict:
        assert second.reports["one"] == first.reports["one"][1:]
    assert ended_alike(second.outcomes["one"], undisturbed)
    assert second.outcomes["one"].metrics["wall_s"] > first.reports["one"][-1]["wall_s"]
    assert list(states.iterdir()) == []


def test_a_state_that_does_not_fit_fails_its_trial(
    resident: ResidentBase, trial: MakeTrial, packed_engine: MakeEngine, tmp_path: Path
) -> None:
    states = tmp_path / "states"
    packed_engine(resident, slots=1, training=SIX, checkpoints=states).run(
        Told([trial("one")], reports={("one", 2): None})
    )
    (states / "torn.safetensors").write_bytes(b"torn")
    exchange = LocalExchange([trial("one", r=8), trial("torn")])
    packed_engine(resident, slots=2, training=SIX, checkpoints=states).run(exchange)
    assert "only with the r and target_modules that it began with" in exchange.outcomes["one"].message
    assert [outcome.status for outcome in exchange.outcomes.values()] == ["failed", "failed"]


class Interrupted(LocalExchange):
    """Breaks down after a step."""

    def progress(self, spec: TrialSpec, step: int, train_loss: float) -> None:
        raise ConnectionError("the broker is gone")


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_nothing_is_left_on_the_base(
    tiny_model: Path, trial: MakeTrial, packed_engine: MakeEngine, gradient_checkpointing: bool
) -> None:
    training = TrainingConfig(max_steps=2, max_length=48, gradient_checkpointing=gradient_checkpointing)
    base = load_resident_base(tiny_model, QuantizationConfig(), training)

    def left() -> dict[str, Any]:
        return {
            "attributes": set(base.model.__dict__),
            "attention": base.model.config._attn_implementation,
            "hooks": sum(
                len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
                for module in base.model.modules()
            ),
            "modules": [(name, type(module)) for name, module in base.model.named_modules()],
            "trained": [name for name, parameter in base.model.named_parameters() if parameter.requires_grad],
            "gradients": [name for name, parameter in base.model.named_parameters() if parameter.grad is not None],
        }

    before = left()
    engine = packed_engine(base, slots=2, training=training)
    with pytest.raises(ConnectionError):
        engine.run(Interrupted([trial("lost"), trial("lost too")]))
    assert left() == before
    exchange = LocalExchange([trial("one"), trial("two", target_modules="mlp"), trial("three", learning_rate=1e30)])
    engine.run(exchange)
    assert [exchange.outcomes[name].status for name in ("one", "two")] == ["completed", "completed"]
    assert left() == before
    base.assert_unchanged()


class Admissions(LocalExchange):
    """Times what an engine does between being given a trial and asking again."""

    def __init__(self, specs: list[TrialSpec]) -> None:
        super().__init__(specs)
        self.seconds: list[float] = []
        self._given = 0.0

    def orders(self, free: Free, wait_s: float | None) -> Orders:
        if self._given:
            self.seconds.append(time.monotonic() - self._given)
        orders = super().orders(free, wait_s)
        self._given = time.monotonic() if orders.trials else 0.0
        return orders


def test_a_trial_begins_without_a_reload(
    resident: ResidentBase, trial: MakeTrial, packed_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the base is loaded again")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    exchange = Admissions([trial(f"t{seed}", seed=seed) for seed in range(6)])
    packed_engine(resident, slots=2, training=SIX).run(exchange)
    assert [outcome.status for outcome in exchange.outcomes.values()] == ["completed"] * 6
    print("seconds an admission:", [round(seconds, 4) for seconds in exchange.seconds])


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_dropout_of_the_base_is_off(
    family: Callable[..., ResidentBase],
    trial: MakeTrial,
    run_packed: Run,
    alone: Callable[..., Outcome],
    ended_alike: Alike,
    model_type: str,
) -> None:
    base = family(model_type, QuantizationConfig(), **({"ffn_dim": 128} if model_type == "opt" else {}))
    specs = [trial("one"), trial("two", seed=1)]
    exchange = run_packed(base, *specs, slots=2, training=SIX)
    for spec in specs:
        assert ended_alike(exchange.outcomes[spec.trial_id], alone(base, spec))


@pytest.mark.parametrize("model", ["tiny_model", "gpt2"])
def test_an_8_bit_base_trains(
    request: pytest.FixtureRequest, model: str, trial: MakeTrial, run_packed: Run, alone: Callable[..., Outcome]
) -> None:
    """On a CPU it trains as alone, but LLM.int8() evaluates with outlier columns that all rows share."""
    quantization = QuantizationConfig(load_in_4bit=False, load_in_8bit=True, bnb_4bit_compute_dtype="float32")
    base = load_resident_base(request.getfixturevalue(model), quantization, TrainingConfig())
    specs = [trial("one"), trial("two", seed=1)]
    exchange = run_packed(base, *specs, slots=2, training=SIX)
    for spec in specs:
        outcome, expected = exchange.outcomes[spec.trial_id], alone(base, spec)
        assert outcome.status == "completed", outcome.message
        assert [outcome.metrics[name] for name in ("train_loss", "grad_norm")] == [
            expected.metrics[name] for name in ("train_loss", "grad_norm")
        ]
        assert outcome.metrics["eval_loss"] == pytest.approx(expected.metrics["eval_loss"], rel=1e-3)
    base.assert_unchanged()
