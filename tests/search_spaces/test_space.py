"""A space as Optuna, the trainer and a file see it."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest

from rankloom_spaces import Choice, SearchSpace, SpaceError, load_space, preset_names

EVERYTHING: dict[str, Any] = {
    "name": "everything",
    "parameters": {
        "r": {"int": [8, 64], "step": 8},
        "lora_alpha": {"rule": "times_r", "choice": [1, 0.5]},
        "lora_dropout": {"uniform": [0.0, 0.1]},
        "target_modules": {"choice": ["mlp", ["q_proj", "v_proj"]]},
        "learning_rate": {"loguniform": [1e-5, 1e-3]},
        "weight_decay": {"choice": [0.01, 0.0]},
        "warmup_ratio": 0.03,
        "lr_scheduler_type": {"choice": ["constant", "cosine"]},
        "max_grad_norm": {"uniform": [0.3, 1.0]},
        "gradient_accumulation_steps": {"int": [1, 16], "log": True},
    },
}


def test_optuna_samples_points_that_resolve() -> None:
    space = load_space(EVERYTHING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # choices that Optuna's storages do not keep only warn
        for _ in range(20):
            trial = study.ask(space.distributions())
            config = space.resolve(trial.params)
            assert config["lora_alpha"] in (trial.params["r"], trial.params["r"] / 2)
            assert config["r"] % 8 == 0 and 1e-5 <= config["learning_rate"] <= 1e-3
            assert config["target_modules"] in ("mlp", "q_proj+v_proj")
            assert config["warmup_ratio"] == 0.03
            assert config["use_rslora"] is False


def test_distributions_are_optunas() -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found = load_space(EVERYTHING).distributions()
    assert found["r"] == IntDistribution(8, 64, step=8)
    assert found["gradient_accumulation_steps"] == IntDistribution(1, 16, log=True)
    assert found["learning_rate"] == FloatDistribution(1e-5, 1e-3, log=True)
    assert found["max_grad_norm"] == FloatDistribution(0.3, 1.0)
    assert found["target_modules"] == CategoricalDistribution(("mlp", "q_proj+v_proj"))
    assert found["warmup_ratio"] == CategoricalDistribution((0.03,))
    assert list(found) == list(EVERYTHING["parameters"])


@pytest.mark.parametrize("source", [*preset_names(), EVERYTHING])
@pytest.mark.parametrize("hidden_size", [None, 64, 576, 4096, 16384])
def test_prior_is_a_point_of_the_space(source: Any, hidden_size: int | None) -> None:
    space = load_space(source)
    point, distributions = space.prior(hidden_size, "llama"), space.distributions()
    assert list(point) == list(distributions)
    for name, value in point.items():
        distribution = distributions[name]
        assert distribution._contains(distribution.to_internal_repr(value)), name


def test_prior_of_the_default_space() -> None:
    assert load_space("lora").prior() == {
        "r": 64,
        "lora_alpha": 16,
        "learning_rate": 3e-4,
        "target_modules": "all-linear",
        "lora_dropout": 0.0,
    }


def test_prior_takes_the_last_targets_and_the_first_of_the_rest() -> None:
    point = load_space(EVERYTHING).prior()
    assert point["target_modules"] == "q_proj+v_proj"
    assert point["weight_decay"] == 0.01
    assert point["max_grad_norm"] == 0.3
    assert point["r"] == 64


@pytest.mark.parametrize(
    ("hidden_size", "model_type", "expected"),
    [
        (2000, "llama", 5e-4),
        (4096, "llama", 5e-4 * (2000 / 4096) ** 0.78),
        (4096, None, 5e-4 * (2000 / 4096) ** 0.78),
        (4096, "qwen2", 5e-4 * (2000 / 4096) ** 0.08),
        (4096, "qwen3_moe", 5e-4 * (2000 / 4096) ** 0.08),
        (64, "llama", 1e-3),
    ],
)
def test_prior_learning_rate_follows_the_width_within_the_range(
    hidden_size: int, model_type: str | None, expected: float
) -> None:
    assert load_space("lora").prior(hidden_size, model_type)["learning_rate"] == pytest.approx(expected)


def test_prior_takes_the_nearest_offered_learning_rate_by_ratio() -> None:
    space = SearchSpace("steps", {"learning_rate": Choice((1e-5, 1e-4, 1e-3))})
    assert space.prior()["learning_rate"] == 1e-4
    assert space.prior(hidden_size=1000)["learning_rate"] == 1e-3
    # 3e-4 is nearer to 1e-4 by difference, and to 6e-4 by ratio.
    assert SearchSpace("steps", {"learning_rate": Choice((1e-4, 6e-4))}).prior()["learning_rate"] == 6e-4


def test_prior_refuses_an_impossible_width() -> None:
    with pytest.raises(SpaceError, match="hidden_size must be positive, got 0"):
        load_space("lora").prior(hidden_size=0)


@pytest.mark.parametrize(
    ("rule", "alpha", "use_rslora"), [("fixed", 2, False), ("times_r", 32, False), ("rslora", 2, True)]
)
def test_alpha_rules(rule: str, alpha: int, use_rslora: bool) -> None:
    space = load_space({"parameters": {"r": {"choice": [8, 16]}, "lora_alpha": {"rule": rule, "choice": [1, 2]}}})
    config = space.resolve({"r": 16, "lora_alpha": 2})
    assert (config["lora_alpha"], config["use_rslora"]) == (alpha, use_rslora)
    assert type(config["lora_alpha"]) is int


def test_a_multiple_of_r_stays_whole_where_it_is() -> None:
    space = load_space(EVERYTHING)
    even = space.resolve({"r": 8, "lora_alpha": 0.5})["lora_alpha"]
    assert (even, type(even)) == (4, int)
    assert space.resolve({"r": 5, "lora_alpha": 0.5})["lora_alpha"] == 2.5


def test_resolve_fills_in_the_documented_defaults() -> None:
    assert load_space({"parameters": {"learning_rate": {"uniform": [0.1, 0.2]}}}).resolve({}) == {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "learning_rate": 2e-4,
        "use_rslora": False,
    }


def test_resolve_uses_the_spaces_constants_before_the_defaults() -> None:
    space = load_space({"parameters": {"r": 4, "lora_alpha": {"rule": "times_r", "choice": [2]}}})
    config = space.resolve({})
    assert (config["r"], config["lora_alpha"]) == (4, 8)


@pytest.mark.parametrize("rule", ["times_r", "rslora"])
def test_the_alpha_rule_is_not_applied_to_the_default(rule: str) -> None:
    space = load_space({"parameters": {"lora_alpha": {"rule": rule, "choice": [1, 2]}}})
    config = space.resolve({})
    assert (config["lora_alpha"], config["use_rslora"]) == (16, False)


def test_resolve_refuses_what_the_space_does_not_have_and_what_no_space_may_have() -> None:
    space = load_space("lora")
    with pytest.raises(SpaceError, match=r"space 'lora' has no parameter 'lora_r'"):
        space.resolve({"lora_r": 8})
    with pytest.raises(SpaceError, match="space 'lora': r must be a whole number from 1 to 1024, got 0"):
        space.resolve({"r": 0})


@pytest.mark.parametrize("source", [*preset_names(), EVERYTHING])
def test_round_trips(source: Any, tmp_path: Path) -> None:
    space = load_space(source)
    path = tmp_path / "space.yaml"
    path.write_text(space.to_yaml(), encoding="utf-8")
    assert load_space(path) == space
    assert load_space(json.loads(json.dumps(space.to_dict()))) == space
    assert pickle.loads(pickle.dumps(space)) == space
    assert list(load_space(path).parameters) == list(space.parameters)


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(SpaceError("the rule")))
    assert isinstance(error, SpaceError) and isinstance(error, ValueError) and str(error) == "the rule"
