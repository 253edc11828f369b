"""Strict JSON for plain data."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from rankloom_registry.errors import EventError


def encode(value: Any) -> str:
    """Write plain data as one line of strict JSON: a loss may be NaN, which JSON can only hold as a string."""
    return json.dumps(_strict(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _strict(value: Any) -> Any:
    match value:
        case None | bool() | str():
            return value
        case Mapping():
            return {str(key): _strict(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_strict(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
        case numbers.Integral():
            return int(value)
        case numbers.Real():  # numpy's scalars too
            return float(value) if math.isfinite(value) else str(float(value))
        case PurePath():
            return str(value)
    raise EventError(f"an event holds plain data that JSON can hold; got {type(value).__name__} {value!r}")


def as_number(value: Any) -> Any:
    """Undo what `encode` did to a number that JSON cannot hold."""
    return float(value) if value in ("nan", "inf", "-inf") else value
