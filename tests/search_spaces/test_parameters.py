"""What a parameter may be, and the message that refuses what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from rankloom_spaces import PARAMETERS, Choice, Range, SearchSpace, SpaceError, load_space


def parameter(name: str, raw: object) -> Any:
    return load_space({"name": "mine", "parameters": {name: raw}}).parameters[name]


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("r", {"choice": [8, 16]}, Choice((8, 16))),
        ("r", 8, Choice((8,))),
        ("r", {"int": [4, 64]}, Range(4, 64, integer=True)),
        ("r", {"int": [8, 64], "step": 8}, Range(8, 64, step=8, integer=True)),
        ("r", {"int": [4, 64], "log": True}, Range(4, 64, log=True, integer=True)),
        ("lora_dropout", {"uniform": [0, 0.1]}, Range(0.0, 0.1)),
        ("lora_dropout", {"choice": [0, 0.05]}, Choice((0.0, 0.05))),
        ("lora_alpha", {"choice": [16, 0.5]}, Choice((16, 0.5))),
        ("lora_alpha", {"int": [8, 64]}, Range(8, 64, integer=True)),
        ("learning_rate", {"loguniform": ["3e-5", 1e-3]}, Range(3e-5, 1e-3, log=True)),
        ("learning_rate", {"choice": ["3e-4"]}, Choice((3e-4,))),
        ("learning_rate", "3e-4", Choice((3e-4,))),
        ("target_modules", {"choice": ["mlp", ["q_proj", "v_proj"]]}, Choice(("mlp", "q_proj+v_proj"))),
        ("target_modules", "q_proj + attn.c_proj", Choice(("q_proj+attn.c_proj",))),
        ("lr_scheduler_type", "cosine", Choice(("cosine",))),
    ],
)
def test_written_forms(name: str, raw: object, expected: object) -> None:
    read = parameter(name, raw)
    assert read == expected
    ends = read.values if isinstance(read, Choice) else (read.low, read.high)
    wanted = expected.values if isinstance(expected, Choice) else (expected.low, expected.high)  # type: ignore[attr-defined]
    assert [type(value) for value in ends] == [type(value) for value in wanted]


OUT_OF_BOUNDS: list[tuple[str, object]] = [
    ("r", 0), ("r", 1025), ("r", 8.0), ("r", "8"), ("r", True),
    ("lora_alpha", 0), ("lora_alpha", -1), ("lora_alpha", float("inf")), ("lora_alpha", True), ("lora_alpha", "nan"),
    ("lora_dropout", 1), ("lora_dropout", -0.1), ("lora_dropout", float("nan")), ("lora_dropout", False),
    ("learning_rate", 0), ("learning_rate", 1.5), ("learning_rate", "fast"), ("learning_rate", float("nan")),
    ("weight_decay", -0.01), ("weight_decay", 2),
    ("warmup_ratio", 1.0), ("warmup_ratio", -0.1),
    ("max_grad_norm", -1), ("max_grad_norm", float("inf")),
    ("gradient_accumulation_steps", 0), ("gradient_accumulation_steps", 1.5),
    ("lr_scheduler_type", "cosin"), ("lr_scheduler_type", 3),
    ("target_modules", "all-lineer"), ("target_modules", ""), ("target_modules", "q_proj+"),
    ("target_modules", "q_proj+q_proj"), ("target_modules", 3), ("target_modules", ".*_proj"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OUT_OF_BOUNDS)
def test_out_of_bounds_names_space_parameter_rule_value_and_next_step(name: str, value: object) -> None:
    with pytest.raises(SpaceError) as caught:
        parameter(name, {"choice": [value]})
    message = str(caught.value)
    assert message.startswith(f"space 'mine': {name} must be {PARAMETERS[name].allowed}, got {value!r}")
    assert message.endswith("; change this value")


def test_every_parameter_has_a_refused_value_in_these_tests() -> None:
    assert {name for name, _ in OUT_OF_BOUNDS} == set(PARAMETERS)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("rnak", 8, r"unknown parameter 'rnak' \(did you mean 'r'\?\).*the parameters are r, lora_alpha"),
        ("lr", 1e-4, "did you mean 'learning_rate'"),
        ("rank", 8, "did you mean 'r'"),
        ("alpha", 8, "did you mean 'lora_alpha'"),
        ("r", {"choise": [8]}, r"unknown key 'choise' \(did you mean 'choice'\?\)"),
        ("r", {"choice": [8], "rule": "fixed"}, "unknown key 'rule'"),
        ("r", {"choice": [8], "step": 2}, "unknown key 'step'.*only `int` takes"),
        ("learning_rate", {"uniform": [0.1, 0.2], "log": True}, "unknown key 'log'"),
        ("r", {"choice": [8], "int": [1, 2]}, r"exactly one form, got \['choice', 'int'\]"),
        ("r", {}, "exactly one form, got none"),
        ("r", None, "got None; write"),
        ("r", [8, 16], r"got \[8, 16\]; write \{choice"),
        ("r", {"choice": 8}, "`choice` must be a list, got 8"),
        ("r", {"choice": []}, "at least one value"),
        ("r", {"choice": [8, 16, 8]}, "must not repeat a value, got 8 twice"),
        ("lora_dropout", {"choice": [0, 0.0]}, "must not repeat a value"),
        ("target_modules", {"choice": ["q_proj+v_proj", ["v_proj", "q_proj"]]}, "must not repeat"),
        ("r", {"int": [8]}, r"must be \[lo, hi\], got \[8\]"),
        ("r", {"int": [64, 8]}, r"below the high end, got \[64, 8\]"),
        ("learning_rate", {"uniform": [0.1, 0.1]}, "write one value"),
        ("weight_decay", {"loguniform": [0, 0.1]}, r"must start above 0, got \[0, 0.1\]"),
        ("weight_decay", {"loguniform": ["0", 0.1]}, "must start above 0"),
        ("learning_rate", {"loguniform": [float("nan"), 0.1]}, "got nan"),
        ("r", {"uniform": [8, 64]}, r"whole numbers.*write \{int: \[8, 64\]\}"),
        ("lora_dropout", {"int": [0, 1]}, r"continuous.*write \{uniform"),
        ("lora_alpha", {"int": [0.5, 2]}, "both ends of `int` must be whole"),
        ("target_modules", {"uniform": [0, 1]}, "takes names, not numbers"),
        ("r", {"int": [1, 64], "step": 8}, "they reach 57; end the range there"),
        ("r", {"int": [1, 64], "step": 0}, "`step` must be a whole number from 1, got 0"),
        ("r", {"int": [1, 64], "step": True}, "`step` must be"),
        ("r", {"int": [1, 64], "step": 7, "log": True}, "`step` cannot go with `log`"),
        ("r", {"int": [1, 64], "log": "yes"}, "`log` must be true or false, got 'yes'"),
    ],
)
def test_refusals(name: str, raw: object, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        parameter(name, raw)
    assert str(caught.value).startswith("space 'mine': ")


def test_target_module_typo_names_the_nearest_group() -> None:
    with pytest.raises(SpaceError, match=r"got 'all-lineer' \(did you mean 'all-linear'\?\)"):
        parameter("target_modules", {"choice": ["all-lineer"]})


def test_a_space_built_in_python_is_checked_too() -> None:
    with pytest.raises(SpaceError, match="space 'mine': r must be a whole number"):
        SearchSpace("mine", {"r": Choice((4096,))})
    assert SearchSpace("mine", {"learning_rate": Choice(("3e-4",))}).parameters == {"learning_rate": Choice((3e-4,))}
