"""Sets adapters side by side and says where they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankloom_dashboard import formats
from rankloom_dashboard.adapters.intervals import MeasuredLoss, with_interval
from rankloom_dashboard.leaderboard import usable_loss
from rankloom_registry import Adapter

_PARAMETERS = ("r", "lora_alpha", "use_rslora", "lora_dropout", "learning_rate", "target_modules", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One property of the compared adapters.

    Attributes:
        name: The property.
        values: Formatted, one an adapter, in their order.
        differs: Whether the adapters disagree.
        best: Which adapters hold the best value, where one is better than another.
    """

    name: str
    values: tuple[str, ...]
    differs: bool
    best: frozenset[int] = frozenset()


def labels(adapters: Sequence[Adapter]) -> list[str]:
    """Names each adapter so that no two names are the same: by its name, with its trial, or with its id."""
    names = [adapter.name for adapter in adapters]
    if len(set(names)) < len(names):
        names = [adapter.name if trial is None else f"{adapter.name} #{trial}" for adapter, trial in _trials(adapters)]
    return [
        name if name and names.count(name) == 1 else f"{name} {formats.shorten(adapter.adapter_id, 8)}".strip()
        for name, adapter in zip(names, adapters, strict=True)
    ]


def _trials(adapters: Sequence[Adapter]) -> list[tuple[Adapter, int | None]]:
    """Each adapter with its trial's number, if other adapters have its name."""
    names = [adapter.name for adapter in adapters]
    return [(one, one.trial_number if names.count(one.name) > 1 else None) for one in adapters]


def configuration_rows(adapters: Sequence[Adapter]) -> list[Row]:
    """Compares what the adapters were trained with: the known hyperparameters first, then whatever else was recorded.

    Args:
        adapters: Two or more adapters.

    Returns:
        One row a property; properties compare by value, not by how they are written.
    """
    extra = sorted({key for adapter in adapters for key in adapter.params} - set(_PARAMETERS))
    columns = [
        {
            "base": adapter.base_identity,
            "search": adapter.search_name,
            **{key: getattr(adapter, key) for key in _PARAMETERS},
            **{key: adapter.params.get(key) for key in extra},
        }
        for adapter in adapters
    ]
    return [_row(key, [column[key] for column in columns]) for key in columns[0]]


def _row(name: str, raw: Sequence[object]) -> Row:
    values = tuple(formats.cut(formats.value(item), 300) for item in raw)
    return Row(name=formats.cut(name, 100), values=values, differs=any(item != raw[0] for item in raw[1:]))


def metric_rows(adapters: Sequence[Adapter]) -> list[Row]:
    """Compares what the adapters reached and what they cost; on each row the lowest is the best.

    Args:
        adapters: Two or more adapters.

    Returns:
        One row a metric.
    """
    losses = [
        _ranked("eval loss", [usable_loss(item.eval_loss) for item in adapters], formats.loss),
        _ranked("train loss", [usable_loss(item.train_loss) for item in adapters], formats.loss),
    ]
    if bases_differ(adapters):  # another base's loss is another thing: none is the best
        losses = [replace(row, best=frozenset()) for row in losses]
    return [
        *losses,
        _ranked("peak memory", [item.peak_memory_bytes for item in adapters], formats.size),
        _ranked("time", [item.wall_s for item in adapters], formats.duration),
        _row("steps", [item.steps for item in adapters]),
        _row("train tokens", [formats.count(item.train_tokens) for item in adapters]),
        _row("effective rank", [formats.short(item.effective_rank) for item in adapters]),
        _row("update norm", [formats.short(item.update_norm) for item in adapters]),
    ]


def measured_rows(measured: Sequence[Mapping[str, MeasuredLoss]]) -> list[Row]:
    """Compares losses on rows that were measured again, each with its bootstrap interval where one was recorded.

    Args:
        measured: For each adapter its losses, as `measured_losses` gives them.

    Returns:
        One row a set of rows, those first that most adapters were measured on; the lowest loss is the best, if all are
        of one base.
    """
    sets = {key: one for found in measured for key, one in found.items()}
    rows = []
    for key in sorted(sets, key=lambda key: -sum(key in found for found in measured)):
        mine = [found.get(key) for found in measured]
        count = f", {sets[key].rows:,} rows" if sets[key].rows else ""
        ranked = _ranked(
            f"{formats.shorten(sets[key].dataset, 40)}{count}",
            [one.loss if one else None for one in mine],
            formats.loss,
        )
        several = len({one.base for one in mine if one and one.base}) > 1
        best = frozenset() if several else ranked.best
        rows.append(replace(ranked, values=tuple(map(with_interval, mine)), best=best))
    return rows


def _ranked(name: str, raw: Sequence[float | None], write: Callable[[Any], str]) -> Row:
    values = tuple(write(value) for value in raw)
    known = [value for value in raw if value is not None and math.isfinite(value)]
    best = frozenset(index for index, value in enumerate(raw) if value in known and value == min(known))
    # Nothing is better where the reader sees no difference, or has nothing to compare with.
    differs = len(set(values)) > 1
    return Row(name=name, values=values, differs=differs, best=best if differs and len(known) > 1 else frozenset())


def bases_differ(adapters: Sequence[Adapter]) -> bool:
    """Says whether the adapters belong to different base weights, which makes their losses another thing each."""
    return len({adapter.base_content_root for adapter in adapters}) > 1
