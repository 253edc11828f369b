"""rankloom: finds the QLoRA adapter worth keeping, and keeps it safe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankloom.config import QuantizationConfig, SearchConfig, TrainingConfig
    from rankloom.errors import RankloomError
    from rankloom.prepare import SearchPlan
    from rankloom.result import SearchResult, Trial
    from rankloom.search import Search

__version__ = "0.1.0"
__all__ = [
    "QuantizationConfig",
    "RankloomError",
    "Search",
    "SearchConfig",
    "SearchPlan",
    "SearchResult",
    "TrainingConfig",
    "Trial",
]

_HOMES = {
    "QuantizationConfig": "config",
    "SearchConfig": "config",
    "TrainingConfig": "config",
    "RankloomError": "errors",
    "SearchResult": "result",
    "Trial": "result",
    "Search": "search",
    "SearchPlan": "prepare",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import rankloom` stays light."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'rankloom' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rankloom.{_HOMES[name]}"), name)
