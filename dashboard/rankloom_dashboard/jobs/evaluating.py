"""An evaluation, as `rankloom evaluate` does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankloom_registry import Registry


def evaluate(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Evaluate adapters and record it.

    Args:
        order: `registry`, `refs`, and the arguments of `rankloom.evaluation.evaluate.evaluate` by name.
        tell: Is told the progress.

    Returns:
        `run`, with which the ids of the records begin.
    """
    from rankloom.evaluation.evaluate import evaluate as run
    from rankloom.hush import hush

    hush()
    wishes = dict(order)
    registry = Registry.open(wishes.pop("registry"))
    report = run(
        registry,
        wishes.pop("refs"),
        on_batch=lambda stage, done, total: tell({"progress": [stage, done, total]}),
        **wishes,
    )
    return {"run": report.run}
