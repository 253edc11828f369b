"""Hashes the files of every adapter again; nothing is changed or recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankloom_registry import ArtifactError, Registry


def verify(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Verify the files of all adapters that should have some.

    Args:
        order: `registry`, the path of the file.
        tell: Hears how far it is.

    Returns:
        `verified`, the number of adapters, and `failed`: what is wrong with which of them.
    """
    registry = Registry.open(order["registry"])
    adapters = registry.adapters("status = 'available'")
    failed = []
    for done, adapter in enumerate(adapters):
        tell({"progress": ["verify files", done, len(adapters)]})
        try:
            registry.verify(adapter)
        except ArtifactError as error:
            failed.append({"adapter_id": adapter.adapter_id, "name": adapter.name, "problem": str(error)})
    return {"verified": len(adapters), "failed": failed}
