"""The parameters of a search as axes: which differ, which are numbers, and which are better seen on a log scale."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankloom_dashboard import formats
from rankloom_dashboard.charts.samples import Sample
from rankloom_dashboard.charts.style import plain
from rankloom_registry import SearchRecord
from rankloom_spaces import Choice, Range, SearchSpace, SpaceError, load_space, preset_names

_WIDE = 8  # numbers of which the largest is so many times the smallest are told apart on a log scale only
_LONGEST = 24  # characters of a label
_MARGIN = 0.05
_MOST_TICKS = 10
_FEW = 3  # numbers, between which there is nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One parameter in which samples differ.

    Attributes:
        name: The parameter.
        log: Whether a log scale shows it best.
        low: The smallest number; of categories 0.
        high: The largest number; of categories the index of the last.
        choices: The values in their order, if they are a few of which one is chosen; none for a range of numbers.
        labels: The categories as the reader sees them, each another; none if the values lie on a scale.
        places: Where each category lies, by its key.
    """

    name: str
    log: bool = False
    low: float
    high: float
    choices: tuple[Any, ...] = ()
    labels: tuple[str, ...] = ()
    places: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The parameter's name as a label of a chart."""
        return plain(formats.shorten(self.name, _LONGEST))

    def place(self, value: Any) -> float | None:
        """Returns where a value lies: a number at itself, a category at its index; None if it has no place."""
        if self.labels:
            return self.places.get(_key(value))
        return float(value) if _is_number(value) else None

    def share(self, place: float) -> float:
        """Returns how far along the axis a place lies, from 0 to 1."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, place))
        return (at - low) / (high - low) if high > low else 0.5

    def layout(self) -> dict[str, Any]:
        """Returns it as an axis of a Plotly figure."""
        low, high = (math.log10(end) if self.log else end for end in (self.low, self.high))
        margin = 0.5 if self.labels else (high - low) * _MARGIN
        described: dict[str, Any] = {"title": {"text": self.title}, "range": [low - margin, high + margin]}
        if self.labels:
            described |= {"tickvals": list(range(len(self.labels))), "ticktext": [plain(item) for item in self.labels]}
        else:
            ticks = _log_ticks(self.low, self.high) if self.log else []
            if 0 < len(self.choices) <= _MOST_TICKS:
                ticks = list(self.choices)
            described |= {"type": "log" if self.log else "linear"}
            described |= {"tickvals": ticks, "ticktext": [formats.short(tick) for tick in ticks]} if ticks else {}
        return described


def axes(search: SearchRecord, samples: Sequence[Sample]) -> list[Axis]:
    """Makes the parameters in which samples differ into axes.

    Args:
        search: Its space says what is a range and what is drawn logarithmically; where it is not known, such as of a
            space that was a function, the values say it.
        samples: Trials of it.

    Returns:
        One axis a parameter, in the order of the trials' configuration.
    """
    space = _space(search.config.get("space"))
    names = dict.fromkeys(name for sample in samples for name in sample.trial.params)
    found = []
    for name in names:
        values = [sample.trial.params[name] for sample in samples if name in sample.trial.params]
        if len({_key(value) for value in values}) > 1:
            found.append(_axis(name, values, space))
    return found


def _axis(name: str, values: Sequence[Any], space: SearchSpace | None) -> Axis:
    distinct = list({_key(value): value for value in values}.values())
    parameter = space.parameters.get(name) if space else None
    if not all(_is_number(value) for value in distinct):
        offered = list(parameter.values) if isinstance(parameter, Choice) else []
        return _categories(name, sorted(distinct, key=lambda v: offered.index(v) if v in offered else len(offered)))
    ordered = sorted(distinct)
    low, high = ordered[0], ordered[-1]
    if isinstance(parameter, Range):
        return Axis(name=name, log=parameter.log and low > 0, low=low, high=high)
    few = isinstance(parameter, Choice) or len(ordered) * 2 <= len(values)
    if few and len(ordered) <= _FEW:
        return _categories(name, ordered)
    log = low > 0 and high / low >= _WIDE
    return Axis(name=name, log=log, low=low, high=high, choices=tuple(ordered) if few else ())


def _categories(name: str, order: Sequence[Any]) -> Axis:
    places = {_key(value): float(index) for index, value in enumerate(order)}
    return Axis(name=name, low=0, high=len(order) - 1, choices=tuple(order), labels=_labels(order), places=places)


def _labels(values: Sequence[Any]) -> tuple[str, ...]:
    """Names categories; what would look the same when it is cut gets a number."""
    cut = [formats.shorten(formats.value(value), _LONGEST) for value in values]
    return tuple(label if cut.count(label) == 1 else f"{label} ({index})" for index, label in enumerate(cut, start=1))


def _space(written: object) -> SearchSpace | None:
    """Reads a search's space; a path in it was meant for the machine that ran the search, and is not opened here."""
    if not isinstance(written, Mapping) and written not in preset_names():
        return None
    try:
        return load_space(written)
    except SpaceError:
        return None


def _log_ticks(low: float, high: float) -> list[float]:
    """Chooses round numbers: 1, 2 and 5 of each power of ten, or the powers alone where those would be too many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1,) if last - first > 3 else (1, 3) if last - first > 1 else (1, 2, 5)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001] or [low, high]


def _key(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
