"""Numbers, sizes and times as people read them."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

MISSING = "–"
_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60))


def loss(value: float | None) -> str:
    """Formats a loss with four decimals."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}"


def short(value: float | None) -> str:
    """Formats a hyperparameter with four significant digits, small ones as powers of ten."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}".replace("e-0", "e-")


def count(value: int | None) -> str:
    """Formats a whole number with thousands apart."""
    return MISSING if value is None else f"{value:,}"


def base(identity: str) -> str:
    """Formats a base's identity: a path by its last part, a hub id as it is."""
    return PurePath(identity).name if PurePath(identity).is_absolute() else identity


def counted(number: int, one: str, many: str) -> str:
    """Formats a number of things with the word for them."""
    return f"{number:,} {one if number == 1 else many}"


def size(value: int | None) -> str:
    """Formats bytes in binary units."""
    if value is None:
        return MISSING
    if value < 1024:
        return f"{value} B"
    power = min(int(math.log2(value) // 10), 5)
    number = value / 1024**power
    return f"{number:{'.3g' if number < 999.5 else '.0f'}} {'KMGTP'[power - 1]}iB"


def duration(seconds: float | None) -> str:
    """Formats seconds as at most two units."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def when(moment: datetime | None) -> str:
    """Formats a moment as ISO 8601 in local time, to the second."""
    return MISSING if moment is None else moment.astimezone().isoformat(sep=" ", timespec="seconds")


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """Formats how long ago a moment was."""
    if moment is None:
        return MISSING
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 60:
        return "just now"
    unit, length = next((unit, length) for unit, length in _UNITS if seconds >= length)
    return f"{counted(int(seconds // length), unit, f'{unit}s')} ago"


def value(anything: Any) -> str:
    """Formats one value of a configuration, whatever its type."""
    match anything:
        case None | "":
            return MISSING
        case bool():
            return "yes" if anything else "no"
        case int():
            return str(anything)
        case float():
            return short(anything)
        case str():
            return anything
        case list() | tuple():
            return " + ".join(value(item) for item in anything)
        case _:
            return json.dumps(anything, default=str, sort_keys=True)


def shorten(identifier: str, length: int = 10) -> str:
    """Cuts an identifier for a place where the whole would not fit."""
    return identifier if len(identifier) <= length + 2 else f"{identifier[:length]}…"


def cut(text: str, length: int = 2000) -> str:
    """Cuts a text that others wrote to what a page can show, and says so."""
    return text if len(text) <= length else f"{text[:length]}… (cut: {len(text):,} characters in all)"
