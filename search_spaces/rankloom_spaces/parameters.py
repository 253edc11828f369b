"""The two kinds of parameter, a choice and a range: how they are written, checked and handed to Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankloom_spaces.errors import SpaceError
from rankloom_spaces.rules import PARAMETERS, Value, read_value
from rankloom_spaces.suggest import did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_FORMS = ("choice", "uniform", "loguniform", "int")
_HOW = "write {choice: [...]}, {uniform: [lo, hi]}, {loguniform: [lo, hi]}, {int: [lo, hi]} or one bare value"


@dataclass(frozen=True)
class Choice:
    """One of a few values; a single value is a constant.

    Attributes:
        values: The values, in the order written.
    """

    values: tuple[Value, ...]

    @property
    def first(self) -> Value:
        """The value the writer put first."""
        return self.values[0]

    @property
    def low(self) -> Value:
        """The smallest of numeric values."""
        return min(self.values, key=float)

    @property
    def high(self) -> Value:
        """The largest of numeric values."""
        return max(self.values, key=float)

    def distribution(self) -> BaseDistribution:
        """Returns Optuna's categorical distribution over the values."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the parameter as it is written in YAML."""
        return {"choice": list(self.values)}


@dataclass(frozen=True)
class Range:
    """Any number between two ends, both included.

    Attributes:
        low: The smaller end.
        high: The larger end.
        log: Whether equal ratios, not equal differences, are equally likely.
        step: Distance between neighbouring whole numbers, for an integer range that is not logarithmic.
        integer: Whether only whole numbers are meant.
    """

    low: float
    high: float
    log: bool = False
    step: int = 1
    integer: bool = False

    @property
    def first(self) -> Value:
        """The low end, the mildest setting."""
        return self.low

    def distribution(self) -> BaseDistribution:
        """Returns Optuna's integer or float distribution over the range."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=self.step)
        return FloatDistribution(self.low, self.high, log=self.log)

    def to_dict(self) -> dict[str, Any]:
        """Returns the parameter as it is written in YAML."""
        ends = [self.low, self.high]
        if not self.integer:
            return {"loguniform" if self.log else "uniform": ends}
        extra: dict[str, Any] = {"log": True} if self.log else {}
        return {"int": ends} | extra | ({"step": self.step} if self.step != 1 else {})


Parameter = Choice | Range


def parse_parameter(name: str, raw: object) -> Parameter:
    """Reads the written form of one parameter; the values are checked by `checked`.

    Args:
        name: The parameter, for messages.
        raw: A mapping with one of `choice`, `uniform`, `loguniform`, `int`, or a bare scalar, which is a constant.

    Returns:
        The parameter, its values as written.

    Raises:
        SpaceError: The mapping has an unknown key, or not exactly one form, or a form of the wrong shape.
    """
    if isinstance(raw, Choice | Range):
        return raw
    if not isinstance(raw, Mapping):
        if raw is None or isinstance(raw, list | tuple):
            raise SpaceError(f"{name} must be a mapping or one bare value, got {raw!r}; {_HOW}")
        return Choice((raw,))  # type: ignore[arg-type]  # `checked` types it
    forms = [form for form in _FORMS if form in raw]
    options = {"log", "step"} if forms == ["int"] else set()
    for key in raw:
        if key not in {*_FORMS, *options}:
            near = did_you_mean(key, {*_FORMS, *options})
            raise SpaceError(f"{name} has the unknown key {key!r}{near}; {_HOW}; only `int` takes `log` and `step`")
    if len(forms) != 1:
        raise SpaceError(f"{name} must have exactly one form, got {sorted(map(str, raw)) or 'none'}; {_HOW}")
    form, body = forms[0], raw[forms[0]]
    if not isinstance(body, list | tuple):
        raise SpaceError(f"{name}: `{form}` must be a list, got {body!r}; {_HOW}")
    if form == "choice":
        return Choice(tuple(body))
    if len(body) != 2:
        raise SpaceError(f"{name}: `{form}` must be [lo, hi], got {body!r}; give both ends and nothing else")
    low, high = body
    return Range(low, high, log=raw.get("log", form == "loguniform"), step=raw.get("step", 1), integer=form == "int")


def checked(name: str, parameter: Parameter) -> Parameter:
    """Returns the parameter with typed values, or refuses it.

    Args:
        name: Which of `PARAMETERS` it is.
        parameter: A choice or a range, its values perhaps still as written.

    Returns:
        The same parameter, every value typed and within the bounds of its name.

    Raises:
        SpaceError: An unknown name, a value out of bounds, an empty or repeated choice, an impossible range.
    """
    if name not in PARAMETERS:
        near = did_you_mean({"lr": "learning_rate", "rank": "r"}.get(name, name), PARAMETERS)
        raise SpaceError(f"unknown parameter {name!r}{near}; the parameters are {', '.join(PARAMETERS)}")
    return _checked_choice(name, parameter) if isinstance(parameter, Choice) else _checked_range(name, parameter)


def _checked_choice(name: str, choice: Choice) -> Choice:
    if not choice.values:
        raise SpaceError(f"{name}: `choice` must have at least one value, got []; add one, or remove {name}")
    values = tuple(read_value(name, raw) for raw in choice.values)
    seen: set[object] = set()
    for value in values:
        # The order of module names makes no difference to the adapter, so neither does it to what counts as a repeat.
        key = frozenset(value.split("+")) if isinstance(value, str) else value
        if key in seen:
            raise SpaceError(f"{name}: `choice` must not repeat a value, got {value!r} twice; remove one")
        seen.add(key)
    return Choice(values)


def _checked_range(name: str, given: Range) -> Range:
    kind, written = PARAMETERS[name].kind, [given.low, given.high]
    if kind == "str":
        raise SpaceError(f"{name} takes names, not numbers, got the range {written}; write {{choice: [...]}}")
    if kind == "int" and not given.integer:
        raise SpaceError(f"{name} takes whole numbers, got the continuous range {written}; write {{int: {written}}}")
    if kind == "float" and given.integer:
        raise SpaceError(f"{name} is continuous, got the integer range {written}; write {{uniform: {written}}}")
    if not isinstance(given.log, bool):
        raise SpaceError(f"{name}: `log` must be true or false, got {given.log!r}; change it")
    low, high = _read_number(name, given.low), _read_number(name, given.high)
    if low >= high:
        raise SpaceError(f"{name}: the low end must be below the high end, got {written}; swap them or write one value")
    if given.log and low <= 0:
        raise SpaceError(f"{name}: a logarithmic range must start above 0, got {written}; raise the low end")
    if not given.integer:
        return Range(float(low), float(high), log=given.log)
    if not (isinstance(low, int) and isinstance(high, int)):
        raise SpaceError(f"{name}: both ends of `int` must be whole numbers, got {written}; round them")
    _check_step(name, given, high - low)
    return Range(low, high, log=given.log, step=given.step, integer=True)


def _read_number(name: str, raw: object) -> int | float:
    value = read_value(name, raw)
    assert not isinstance(value, str)  # names were refused by their kind
    return value


def _check_step(name: str, given: Range, span: int) -> None:
    # `type`, for True is an instance of int.
    if type(given.step) is not int or given.step < 1:
        raise SpaceError(f"{name}: `step` must be a whole number from 1, got {given.step!r}; change it")
    if given.log and given.step != 1:
        raise SpaceError(f"{name}: `step` cannot go with `log`, got step {given.step}; remove one of them")
    if span % given.step:  # Optuna would lower the high end with a warning
        reached = given.high - span % given.step
        raise SpaceError(
            f"{name}: steps of {given.step} from {given.low} must reach the high end {given.high}, "
            f"they reach {reached}; end the range there"
        )
