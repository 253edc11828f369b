from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.training.evaluation import evaluate_loss
from rankloom.training.exchange import Free, LocalExchange, Orders, Outcome, Report, TrialSpec
from rankloom.training.resident import ResidentBase, load_resident_base
from rankloom.training.trial import lora_config, varied
from rankloom.training.trl import TrlEngine, adapted

RunTrials = Callable[..., LocalExchange]
MakeTrial = Callable[..., TrialSpec]
VOLATILE = ("wall_s", "peak_memory_bytes")


def figures(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in VOLATILE}


def adapter_of(outcome: Outcome) -> dict[str, torch.Tensor]:
    assert outcome.adapter is not None
    return dict(load_file(outcome.adapter / "adapter_model.safetensors"))


def same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_trial_completes(resident: ResidentBase, trial: MakeTrial, run_trials: RunTrials) -> None:
    exchange = run_trials(resident, trial("one"))
    outcome = exchange.outcomes["one"]
    assert (outcome.status, outcome.message) == ("completed", "")
    assert [report["steps"] for report in exchange.reports["one"]] == [2]
    assert outcome.metrics["steps"] == 4
    assert 0 < outcome.metrics["eval_loss"] < exchange.reports["one"][0]["eval_loss"] < 7
    assert {"train_loss", "train_tokens", "learning_rate", "grad_norm", "epoch", *VOLATILE} < outcome.metrics.keys()
    assert outcome.metrics["train_tokens"] > exchange.reports["one"][0]["train_tokens"] > 0
    assert outcome.metrics["peak_memory_bytes"] > 2**20 and outcome.metrics["wall_s"] > 0


def test_a_trial_stops_where_it_is_told(resident: ResidentBase, trial: MakeTrial, run_trials: RunTrials) -> None:
    training = TrainingConfig(max_steps=6, eval_steps=2, max_length=48)
    exchange = run_trials(resident, trial("one"), training=training, stop={"one": 4})
    outcome = exchange.outcomes["one"]
    assert outcome.status == "stopped"
    assert [report["steps"] for report in exchange.reports["one"]] == [2, 4]
    assert outcome.metrics["steps"] == 4
    assert outcome.metrics["eval_loss"] == exchange.reports["one"][-1]["eval_loss"]
    assert adapter_of(outcome)


def test_the_same_seed_gives_the_same_bits(resident: ResidentBase, trial: MakeTrial, run_trials: RunTrials) -> None:
    exchange = run_trials(resident, trial("one"), trial("again"), trial("other", seed=8))
    one, again, other = (exchange.outcomes[name] for name in ("one", "again", "other"))
    assert figures(one.metrics) == figures(again.metrics)
    assert list(map(figures, exchange.reports["one"])) == list(map(figures, exchange.reports["again"]))
    assert same_tensors(adapter_of(one), adapter_of(again))
    assert one.metrics["eval_loss"] != other.metrics["eval_loss"]


class Answering(LocalExchange):
    """Answers every report in mid-trial with the same orders."""

    def __init__(self, specs: list[TrialSpec], answer: Orders) -> None:
        super().__init__(specs)
        self._answer = answer
        self._reported = False

    def report(self, reports: Sequence[Report]) -> None:
        super().report(reports)
        self._reported = True

    def orders(self, free: Free, wait_s: float | None) -> Orders:
        orders = super().orders(free, wait_s)
        return self._answer if self._reported and not self.outcomes else orders


def test_a_trial_cannot_be_paused(
    resident: ResidentBase, trial: MakeTrial, engine_of: Callable[..., TrlEngine]
) -> None:
    exchange = Answering([trial("one")], Orders(verdicts={"one": "pause"}))
    engine_of(resident).run(exchange)
    assert exchange.outcomes["one"].status == "failed"
    assert "which engine 'trl' cannot: set engine to 'packed'" in exchange.outcomes["one"].message
    resident.assert_unchanged()


def test_the_end_of_the_search_leaves_a_trial_without_an_outcome(
    resident: ResidentBase, trial: MakeTrial, engine_of: Callable[..., TrlEngine]
) -> None:
    exchange = Answering([trial("one")], Orders(over=True))
    engine = engine_of(resident)
    engine.run(exchange)
    assert [report["steps"] for report in exchange.reports["one"]] == [2] and exchange.outcomes == {}
    assert not (engine.adapters / "one").exists()
    resident.assert_unchanged()


class OutOfMemoryEngine(TrlEngine):
    """Runs out of memory in the middle of the trial named 'hungry', with its adapter on the base."""

    def _train(self, spec: TrialSpec, exchange: Any) -> Outcome | None:
        if spec.trial_id == "hungry":
            with adapted(self.base, lora_config(self.base, spec.params)):
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")
        return super()._train(spec, exchange)


FAILURES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "diverges": ({"learning_rate": 1e30}, (" at step ", "lower learning_rate")),
    "lacks its target": ({"target_modules": "c_attn"}, ("no linear module for 'c_attn'", "it has down_proj")),
    "breaks a bound": ({"per_device_train_batch_size": 0}, ("per_device_train_batch_size", "greater than")),
    "is too large": ({"r": 10**13}, ("out of memory: ", "lower r or the batch size")),
    "hungry": ({}, ("out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.; lower r",)),
}


def test_a_failure_is_an_outcome_and_touches_no_other_trial(
    resident: ResidentBase,
    tiny_model: Path,
    trial: MakeTrial,
    run_trials: RunTrials,
    rows: tuple[Dataset, Dataset],
    tmp_path: Path,
) -> None:
    untouched = load_resident_base(tiny_model, QuantizationConfig(), TrainingConfig())
    alone = run_trials(untouched, trial("alone"))
    specs = [
        spec for name, (changes, _) in FAILURES.items() for spec in (trial(name, **changes), trial(f"after {name}"))
    ]
    exchange = LocalExchange(specs)
    engine = OutOfMemoryEngine(
        base=resident,
        train_dataset=rows[0],
        eval_dataset=rows[1],
        training=TrainingConfig(max_steps=4, eval_steps=2, max_length=48),
        adapters=tmp_path / "adapters",
    )
    engine.run(exchange)
    for name, (_, fragments) in FAILURES.items():
        failed, after = exchange.outcomes[name], exchange.outcomes[f"after {name}"]
        assert failed.status == "failed" and failed.adapter is None
        assert [fragment for fragment in fragments if fragment not in failed.message] == [], failed.message
        assert "\n" not in failed.message
        assert not (tmp_path / "adapters" / name).exists()
        assert figures(after.metrics) == figures(alone.outcomes["alone"].metrics), name
        assert same_tensors(adapter_of(after), adapter_of(alone.outcomes["alone"])), name
    resident.assert_unchanged()


def test_an_adapter_that_fails_halfway_in_is_taken_out(
    resident: ResidentBase, trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {name: type(module) for name, module in resident.model.named_modules()}
    inject = peft.tuners.lora.LoraModel._create_and_replace

    def run_out(self: Any, *arguments: Any, **options: Any) -> None:
        if options["current_key"].startswith("model.layers.1"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        inject(self, *arguments, **options)

    monkeypatch.setattr(peft.tuners.lora.LoraModel, "_create_and_replace", run_out)
    with pytest.raises(torch.OutOfMemoryError), adapted(resident, lora_config(resident, trial().params)):
        pass
    assert {name: type(module) for name, module in resident.model.named_modules()} == modules
    resident.assert_unchanged()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_nothing_is_left_on_the_base(
    tiny_model: Path, trial: MakeTrial, run_trials: RunTrials, gradient_checkpointing: bool
) -> None:
    training = TrainingConfig(max_steps=2, max_length=48, gradient_checkpointing=gradient_checkpointing)
    base = load_resident_base(tiny_model, QuantizationConfig(), training)

    def left() -> dict[str, Any]:
        return {
            "attributes": set(base.model.__dict__),
            "forward": base.model.__dict__.get("forward"),
            "hooks": sum(
                len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
                for module in base.model.modules()
            ),
            "modules": [name for name, _ in base.model.named_modules()],
        }

    run_trials(base, trial("first"), training=training)
    after_one = left()
    assert "peft_config" not in after_one["attributes"]
    run_trials(base, trial("second"), trial("third", target_modules="mlp"), training=training)
    assert left() == after_one
    base.assert_unchanged()


def test_checkpointing_changes_memory_only(tiny_model: Path, trial: MakeTrial, run_trials: RunTrials) -> None:
    losses = []
    for gradient_checkpointing in (False, True):
        training = TrainingConfig(max_steps=3, max_length=48, gradient_checkpointing=gradient_checkpointing)
        base = load_resident_base(tiny_model, QuantizationConfig(), training)
        losses.append(run_trials(base, trial("one"), training=training).outcomes["one"].metrics["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_a_saved_adapter_gives_the_reported_loss(
    tiny_model: Path,
    resident: ResidentBase,
    trial: MakeTrial,
    run_trials: RunTrials,
    rows: tuple[Dataset, Dataset],
    changes: dict[str, Any],
) -> None:
    outcome = run_trials(resident, trial("one", **changes)).outcomes["one"]
    assert {tensor.dtype for tensor in adapter_of(outcome).values()} == {torch.float32}
    assert outcome.adapter is not None
    config = json.loads((outcome.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8, "none")

    fresh = load_resident_base(tiny_model, QuantizationConfig(), TrainingConfig())
    model = peft.PeftModel.from_pretrained(fresh.model, outcome.adapter)
    loss = evaluate_loss(model, rows[1], batch_size=8, autocast_dtype=fresh.compute_dtype).loss
    assert loss == outcome.metrics["eval_loss"]
    with model.disable_adapter():
        assert evaluate_loss(model, rows[1], batch_size=8, autocast_dtype=fresh.compute_dtype).loss > loss + 0.05


@pytest.mark.parametrize("options", [{}, {"load_in_4bit": False}], ids=["nf4", "unquantized"])
def test_gpt2_trains_and_merges_as_peft_does(
    tmp_path: Path, gpt2: Path, trial: MakeTrial, run_trials: RunTrials, options: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM

    from rankloom.merging.merge import merge_adapter

    base = load_resident_base(gpt2, QuantizationConfig(**options), TrainingConfig())
    # Only here is a Conv1D's weight square, so that a product the wrong way round would fit.
    exchange = run_trials(base, trial("one", target_modules="attn.c_proj"), trial("all"))
    base.assert_unchanged()
    for name, modules in {"one": 2, "all": 8}.items():
        outcome = exchange.outcomes[name]
        assert outcome.status == "completed", outcome.message
        assert outcome.adapter is not None
        report = merge_adapter(adapter=outcome.adapter, base=gpt2, output=tmp_path / name)
        assert report.modules_merged == modules
        model = AutoModelForCausalLM.from_pretrained(gpt2, dtype="auto")
        expected = peft.PeftModel.from_pretrained(model, outcome.adapter).merge_and_unload().state_dict()
        found = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto").state_dict()
        assert same_tensors(found, expected)


def test_settings_that_the_space_varies_are_put_in_and_checked() -> None:
    training = TrainingConfig(max_steps=4)
    assert varied(training, {"r": 8, "weight_decay": 0.1}) == TrainingConfig(max_steps=4, weight_decay=0.1)
    assert varied(training, {"r": 8}) is training
    with pytest.raises(ValueError, match="weight_decay"):
        varied(training, {"weight_decay": -1})


def test_epochs_count_the_steps(resident: ResidentBase, trial: MakeTrial, run_trials: RunTrials) -> None:
    training = TrainingConfig(
        num_train_epochs=0.5, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_length=48
    )
    exchange = run_trials(resident, trial("one"), training=training)
    outcome = exchange.outcomes["one"]
    assert outcome.status == "completed", outcome.message
    assert outcome.metrics["steps"] == 3  # 48 rows make 6 steps of 8 rows
    assert [report["steps"] for report in exchange.reports["one"]] == [1, 2]
