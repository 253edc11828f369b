"""A search space: what Optuna samples, the point to try first, and the configuration a sample stands for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

from rankloom_spaces.errors import SpaceError
from rankloom_spaces.parameters import Choice, Parameter, checked
from rankloom_spaces.rules import Value, read_value
from rankloom_spaces.suggest import did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
AlphaRule = Literal["fixed", "times_r", "rslora"]

DEFAULTS: Mapping[str, Value] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "learning_rate": 2e-4,
}


@dataclass(frozen=True)
class SearchSpace:
    """What can be searched: named parameters, each a choice or a range.

    Attributes:
        name: Name of the space: letters, digits, '.', '_' and '-'.
        parameters: Parameters by name, in the order written; the names are the keys of `PARAMETERS`.
        alpha_rule: What a sampled `lora_alpha` means: `fixed` is alpha itself, `times_r` is a multiple of r,
            `rslora` is alpha under rank-stabilised scaling, alpha / sqrt(r) (https://arxiv.org/abs/2312.03732).

    Raises:
        SpaceError: A name, a value or the rule breaks a rule; the message names the space.
    """

    name: str
    parameters: dict[str, Parameter]
    alpha_rule: AlphaRule = "fixed"

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise SpaceError(
                f"a space's name must be letters and digits with '.', '_', '-' between, got {self.name!r}; set `name`"
            )
        if not self.parameters:
            raise SpaceError(f"space {self.name!r}: `parameters` must name at least one parameter; add learning_rate")
        if self.alpha_rule not in get_args(AlphaRule):
            near = did_you_mean(self.alpha_rule, get_args(AlphaRule))
            raise SpaceError(
                f"space {self.name!r}: lora_alpha: `rule` must be one of {', '.join(get_args(AlphaRule))}, "
                f"got {self.alpha_rule!r}{near}; change it"
            )
        try:
            parameters = {name: checked(name, parameter) for name, parameter in self.parameters.items()}
        except SpaceError as error:
            raise SpaceError(f"space {self.name!r}: {error}") from None
        object.__setattr__(self, "parameters", parameters)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Returns the parameters as Optuna's distributions, the `space` of an `OptunaSearch`; constants included."""
        return {name: parameter.distribution() for name, parameter in self.parameters.items()}

    def prior(self, hidden_size: int | None = None, model_type: str | None = None) -> dict[str, Any]:
        """Returns the point of the space to try first, which published sweeps say is hard to beat.

        All linear layers, the largest rank, the least dropout, and the learning rate nearest to
        5e-4 · (2000 / hidden_size)^p, with p = 0.08 for Qwen models and 0.78 for Llama and all others
        (Schulman et al., "LoRA Without Regret", Thinking Machines Lab, 2025). Every other parameter takes its first
        choice, or the low end of its range.

        Args:
            hidden_size: Width of the model's residual stream; where it is None the rate is 3e-4.
            model_type: `model_type` of the model's configuration, such as `llama` or `qwen2`.

        Returns:
            One value for each parameter of the space, under Optuna's names.

        Raises:
            SpaceError: `hidden_size` is not positive.
        """
        point = {name: parameter.first for name, parameter in self.parameters.items()}
        if "r" in point:
            point["r"] = self.parameters["r"].high
        if "lora_dropout" in point:
            point["lora_dropout"] = self.parameters["lora_dropout"].low
        targets = self.parameters.get("target_modules")
        if isinstance(targets, Choice):
            point["target_modules"] = "all-linear" if "all-linear" in targets.values else targets.values[-1]
        if "learning_rate" in point:
            point["learning_rate"] = _nearest(self.parameters["learning_rate"], prior_rate(hidden_size, model_type))
        return point

    def resolve(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Turns sampled parameters into the configuration of an adapter and its training.

        Args:
            params: Values by parameter name, as Optuna sampled them. A constant of the space may be left out.

        Returns:
            `r`, `lora_alpha` (after the alpha rule), `lora_dropout`, `target_modules` (the string, to be resolved on
            the model at hand), `learning_rate` and `use_rslora`, each from `params`, else the space's constant, else
            a default (8, 16, 0.0, all-linear, 2e-4, False); and every training parameter that was given.

        Raises:
            SpaceError: A parameter that the space does not have, or a value out of its name's bounds.
        """
        values: dict[str, Any] = {
            name: parameter.first
            for name, parameter in self.parameters.items()
            if isinstance(parameter, Choice) and len(parameter.values) == 1
        }
        for name, raw in params.items():
            if name not in self.parameters:
                near = did_you_mean(name, self.parameters)
                raise SpaceError(
                    f"space {self.name!r} has no parameter {name!r}{near}; it has {', '.join(self.parameters)}"
                )
            try:
                values[name] = read_value(name, raw)
            except SpaceError as error:
                raise SpaceError(f"space {self.name!r}: {error}") from None
        config = {**DEFAULTS, **values}
        sampled_alpha = "lora_alpha" in values  # the rule speaks of the space's alpha, never of the default
        if sampled_alpha and self.alpha_rule == "times_r":
            config["lora_alpha"] = _whole(config["lora_alpha"] * config["r"])
        return config | {"use_rslora": sampled_alpha and self.alpha_rule == "rslora"}

    def to_dict(self) -> dict[str, Any]:
        """Returns the space as plain data that `load_space` reads back and JSON can hold."""
        parameters = {name: parameter.to_dict() for name, parameter in self.parameters.items()}
        if "lora_alpha" in parameters:
            parameters["lora_alpha"] = {"rule": self.alpha_rule, **parameters["lora_alpha"]}
        return {"name": self.name, "parameters": parameters}

    def to_yaml(self) -> str:
        """Returns the space as a YAML document that `load_space` reads back from a file."""
        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120)
        return text


def prior_rate(hidden_size: int | None, model_type: str | None) -> float:
    """Returns the published first guess of LoRA's learning rate for a model; see `SearchSpace.prior`."""
    if hidden_size is None:
        return 3e-4
    if hidden_size <= 0:
        raise SpaceError(f"hidden_size must be positive, got {hidden_size}; pass the model's, or None")
    exponent = 0.08 if model_type and "qwen" in model_type.lower() else 0.78
    return 5e-4 * math.pow(2000 / hidden_size, exponent)


def _nearest(parameter: Parameter, rate: float) -> Value:
    if isinstance(parameter, Choice):
        return min(parameter.values, key=lambda value: abs(math.log(float(value) / rate)))
    return min(max(rate, parameter.low), parameter.high)


def _whole(alpha: float) -> float:
    """Keeps alpha an integer where it is one, as PEFT types and other tools read it."""
    return int(alpha) if alpha == int(alpha) else alpha
