"""The owner of the registry while a search runs: a Ray actor on the driver's node, started again if it dies."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rankloom_registry import RegistryError
from rankloom_registry.store.owner import Owner

CLOSE_S = 30.0
RETRY_S = 1.0


class RegistryOwner:
    """Has the registry from its start to its end; what is to be recorded comes in at the owner's own door."""

    def __init__(self, registry: Path) -> None:
        """Take the registry, as soon as it is free.

        Args:
            registry: The resolved path of the registry file.
        """
        self._registry = registry
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._own, name="rankloom-owning", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Commit what waits, and give the registry back."""
        self._closing.set()
        self._thread.join()

    def _own(self) -> None:
        while not self._closing.is_set():
            # Planned: while another search owns it, or the disk is full, everybody does without this owner.
            with contextlib.suppress(RegistryError), Owner(self._registry) as owner:
                while not (owner.over or self._closing.wait(RETRY_S)):
                    pass
            self._closing.wait(RETRY_S)


@contextlib.contextmanager
def owned(registry: Path | None) -> Iterator[None]:
    """Have an actor own a registry for the length of the body.

    Nothing waits for it, and nothing needs it: while it is not there, because it starts, was killed or cannot run
    here, everybody takes turns on the file.

    Args:
        registry: The resolved path of the registry file; None for no owner.
    """
    if registry is None:
        yield
        return
    # The file is locked, and lies on this machine's disk: the actor belongs where the driver is.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = (
        ray.remote(RegistryOwner)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(registry)
    )
    try:
        yield
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # dead already, or it never came to life: both are well
            ray.get(actor.close.remote(), timeout=CLOSE_S)
        ray.kill(actor)
