"""What each searchable parameter is, which values it may take, and how a written value becomes a typed one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from rankloom_spaces.errors import SpaceError
from rankloom_spaces.suggest import did_you_mean
from rankloom_spaces.targets import split_target_choice, target_groups

Value = int | float | str

# Those of transformers' SchedulerType that need no arguments of their own beyond the warmup.
LR_SCHEDULER_TYPES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
)

_MODULE_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)


@dataclass(frozen=True)
class ValueRule:
    """The rule for one parameter's values.

    Attributes:
        kind: `"int"`, `"float"`, `"number"` (either, kept as written) or `"str"`.
        allowed: The bounds in words, to follow "must be".
        allows: Whether a value of the right kind is within the bounds.
        about: One sentence for a listing.
    """

    kind: Literal["int", "float", "number", "str"]
    allowed: str
    allows: Callable[[Any], bool]
    about: str


def _are_targets(choice: str) -> bool:
    parts = split_target_choice(choice)
    known = set(target_groups())
    return len(set(parts)) == len(parts) and all(part in known or _MODULE_NAME.fullmatch(part) for part in parts)


# Comparisons, not a negation of them, so that NaN falls outside every bound.
PARAMETERS: Mapping[str, ValueRule] = MappingProxyType(
    {
        "r": ValueRule(
            "int",
            "a whole number from 1 to 1024",
            lambda v: 1 <= v <= 1024,
            "Rank of the update, the width between A and B.",
        ),
        "lora_alpha": ValueRule(
            "number",
            "a number above 0, at most 65536",
            lambda v: 0 < v <= 65536,
            "Scale of the update: lora_alpha / r, or lora_alpha / sqrt(r) under the rslora rule.",
        ),
        "lora_dropout": ValueRule(
            "float",
            "a number from 0 up to, not including, 1",
            lambda v: 0 <= v < 1,
            "Probability of dropping an input of A while training.",
        ),
        "target_modules": ValueRule(
            "str",
            f"a group ({', '.join(target_groups())}) or distinct module names joined by '+', like q_proj+v_proj",
            _are_targets,
            "Linear layers that get an adapter: a group, resolved on the model at hand, or module names.",
        ),
        "learning_rate": ValueRule(
            "float",
            "a number above 0, at most 1",
            lambda v: 0 < v <= 1,
            "Peak learning rate of the optimizer.",
        ),
        "weight_decay": ValueRule(
            "float", "a number from 0 to 1", lambda v: 0 <= v <= 1, "Decoupled weight decay on A and B."
        ),
        "warmup_ratio": ValueRule(
            "float",
            "a number from 0 up to, not including, 1",
            lambda v: 0 <= v < 1,
            "Share of the steps over which the learning rate rises from 0.",
        ),
        "lr_scheduler_type": ValueRule(
            "str",
            f"one of {', '.join(LR_SCHEDULER_TYPES)}",
            lambda v: v in LR_SCHEDULER_TYPES,
            "Shape of the learning rate after the warmup, as transformers names it.",
        ),
        "max_grad_norm": ValueRule(
            "float",
            "a number from 0 to 1000",
            lambda v: 0 <= v <= 1000,
            "Norm to which a trial's gradient is clipped; 0 turns clipping off.",
        ),
        "gradient_accumulation_steps": ValueRule(
            "int",
            "a whole number from 1 to 1024",
            lambda v: 1 <= v <= 1024,
            "Micro-batches whose gradients are summed before one optimizer step.",
        ),
    }
)


def read_value(name: str, raw: object) -> Value:
    """Turns a written value of a known parameter into a typed one within its bounds.

    A numeric string is read as a number where a float belongs, because YAML reads `3e-4`, without a dot, as a string.
    A list of module names becomes one string joined by `+`, because Optuna's storages keep no lists.

    Args:
        name: A key of `PARAMETERS`.
        raw: The value as YAML, Python or Optuna gave it.

    Returns:
        An `int`, `float` or `str`, as the parameter's rule says.

    Raises:
        SpaceError: The value has the wrong type or is out of bounds.
    """
    rule = PARAMETERS[name]
    value = _typed(name, rule.kind, raw)
    if value is None or not rule.allows(value):
        hint = did_you_mean(raw, target_groups()) if name == "target_modules" and isinstance(raw, str) else ""
        raise SpaceError(f"{name} must be {rule.allowed}, got {raw!r}{hint}; change this value")
    return value


def _typed(name: str, kind: str, raw: object) -> Value | None:
    """Returns the value as its kind, or None where it is of another."""
    if name == "target_modules":
        if isinstance(raw, list | tuple) and all(isinstance(part, str) for part in raw):
            raw = "+".join(raw)
        return "+".join(split_target_choice(raw)) if isinstance(raw, str) else None
    if kind == "str":
        return raw if isinstance(raw, str) else None
    if isinstance(raw, bool):  # bool is an int to Python, and `yes` is a bool to YAML
        return None
    if kind == "int":
        return raw if isinstance(raw, int) else None
    if isinstance(raw, str):
        try:
            return float(raw)
        except ValueError:
            return None
    if isinstance(raw, int):
        return raw if kind == "number" else float(raw)
    return raw if isinstance(raw, float) else None
