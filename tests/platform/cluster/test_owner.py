"""The registry while a search runs: a Ray actor has it, and a search does without where that is not there."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rankloom.cluster.driver import connected
from rankloom.cluster.owner import owned
from rankloom_registry import BaseFingerprint, BaseSeen, Registry
from rankloom_registry.store.owner import Owner


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with connected(verbose=False):
        yield


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry.duckdb", create=True)


@pytest.fixture
def seen(fingerprint: BaseFingerprint) -> Callable[[int], BaseSeen]:
    """Makes numbered events."""
    return lambda number: BaseSeen(base=fingerprint, event_id=f"seen-{number}")


def numbers(registry: Registry) -> list[int]:
    return sorted(int(event.event_id.removeprefix("seen-")) for event in registry.events())


def owner(registry: Registry, before: int = 0) -> int:
    """The process that owns the registry, when it is up and is another one than before."""
    signature = {}

    def is_there() -> bool:
        try:
            signature.update(json.loads(Path(f"{registry.path}.lock").read_bytes()))
        except ValueError:
            return False
        return "socket" in signature and signature["pid"] != before

    wait_for(is_there)
    return int(signature["pid"])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_actor_that_owns_the_registry_may_be_killed(registry: Registry, seen: Callable[[int], BaseSeen]) -> None:
    count = 0
    with owned(registry.path):
        before = 0
        for _ in range(2):
            before = owner(registry, before)
            assert before != os.getpid()
            registry.record(seen(count))
            os.kill(before, signal.SIGKILL)
            for _ in range(3):
                count += 1
                registry.record(seen(count))
            count += 1
            assert numbers(registry) == list(range(count))
        owner(registry, before)
    assert numbers(registry) == list(range(count))
    assert Path(f"{registry.path}.lock").read_bytes() == b""
    assert not Path(f"{registry.path}.wal").exists()


def test_a_search_does_without_an_owner_that_cannot_be(registry: Registry, seen: Callable[[int], BaseSeen]) -> None:
    with Owner(registry.path):  # another search's
        with owned(registry.path):
            registry.record(seen(0))
            assert numbers(registry) == [0]
        registry.record(seen(1))
    with owned(registry.path.with_name("none.duckdb")):
        registry.record(seen(2))
    with owned(None):
        registry.record(seen(3))
    assert numbers(registry) == [0, 1, 2, 3]


def test_an_owner_takes_over_when_another_one_ends(registry: Registry, seen: Callable[[int], BaseSeen]) -> None:
    with ExitStack() as later:
        with Owner(registry.path):
            later.enter_context(owned(registry.path))
            registry.record(seen(0))
        assert owner(registry, os.getpid()) != os.getpid()
        registry.record(seen(1))
    assert numbers(registry) == [0, 1]
