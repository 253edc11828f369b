"""Promotes an adapter, and tells of each gate as it is passed or closed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankloom_registry import Registry

_EVERY_S = 0.2  # a merge says how far it is thousands of times


def promote(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Promote an adapter.

    Args:
        order: `registry`, `adapter` and `output`, and what else `rankloom.promotion.promote.promote` takes by name.
        tell: Hears how far it is, and the figures of each gate.

    Returns:
        The promotion, as JSON-ready values.
    """
    from rankloom.hush import hush
    from rankloom.promotion.promote import promote as run

    hush()
    last = ("", 0.0)

    def on_progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or done == total or now - last[1] > _EVERY_S:
            last = (stage, now)
            tell({"progress": [stage, done, total]})

    wishes = {name: value for name, value in order.items() if name not in ("registry", "adapter", "output")}
    made = run(
        Registry.open(order["registry"]),
        order["adapter"],
        Path(order["output"]),
        **wishes,
        on_progress=on_progress,
        on_gate=lambda name, figures: tell({"told": {"gate": name, **figures}}),
    )
    return made.to_dict()
