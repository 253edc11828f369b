from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rankloom.training.packed.planner import Probe, plan_slots

MIB = 2**20


def device(*, full_at: int, slot_bytes: int = 100 * MIB) -> tuple[Callable[[int], Probe], list[int]]:
    """A device that trains up to `full_at` slots in the time of one, and a list of what was tried on it."""
    tried: list[int] = []

    def probe(slots: int) -> Probe:
        tried.append(slots)
        return Probe(seconds=max(1.0, slots / full_at), bytes=slots * slot_bytes)

    return probe, tried


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int, str, list[int]]] = {
    "one trial": ({}, {"most": 1}, 1, "there is one trial at a time", []),
    "a CPU that one trial fills": ({}, {"token_budget": 599}, 1, "one trial's 300 tokens a pass fill the device", []),
    "a CPU": ({}, {"token_budget": 1024}, 3, "about 1024 tokens a pass fill the device", [1]),
    "a CPU and few trials": ({}, {"token_budget": 1024, "most": 2}, 2, "as many as the search trains at a time", [1]),
    "a CPU with little memory": (
        {"slot_bytes": 400 * MIB}, {"token_budget": 4096}, 2, "a slot takes 400 MiB of 1000 MiB free", [1]
    ),
    "a CPU with too little memory": (
        {"slot_bytes": 2000 * MIB}, {"token_budget": 4096}, 1, "a slot takes 2000 MiB of 1000 MiB free", [1]
    ),
    "a GPU that 2 slots fill": ({"full_at": 2}, {}, 2, "2 slots of 300 tokens fill the device", [1, 2, 4]),
    "a GPU that one slot fills": ({"full_at": 1}, {}, 1, "1 slots of 300 tokens fill the device", [1, 2]),
    "a GPU and few trials": ({"full_at": 64}, {"most": 5}, 5, "as many as the search trains at a time", [1, 2, 4]),
    "a GPU with little memory": ({"full_at": 64}, {}, 8, "a slot takes 100 MiB of 1000 MiB free", [1, 2, 4, 8]),
}  # fmt: skip


@pytest.mark.parametrize(("machine", "changes", "slots", "reason", "tried"), CASES.values(), ids=CASES)
def test_slots(machine: dict[str, Any], changes: dict[str, Any], slots: int, reason: str, tried: list[int]) -> None:
    probe, found = device(**{"full_at": 4, **machine})
    options = {"most": 64, "tokens_per_slot": 300, "available_bytes": 1000 * MIB, "token_budget": None, **changes}
    plan = plan_slots(probe, **options)
    assert (plan.slots, found) == (slots, tried)
    assert reason in plan.reason


def test_memory_that_grows_faster_than_slots_is_noticed() -> None:
    """One slot's peak may lie outside of training; then four slots do not take four times as much."""

    def probe(slots: int) -> Probe:
        return Probe(seconds=1.0, bytes=slots**3 * 10 * MIB)

    plan = plan_slots(probe, most=64, tokens_per_slot=300, available_bytes=1000 * MIB, token_budget=None)
    assert plan.slots == 4


@pytest.mark.parametrize(("last", "slots"), [(0, 1), (2, 2)])
def test_a_probe_that_runs_out_of_memory_is_an_answer(last: int, slots: int) -> None:
    def probe(tried: int) -> Probe | None:
        return Probe(seconds=1.0, bytes=MIB) if tried <= last else None

    plan = plan_slots(probe, most=64, tokens_per_slot=300, available_bytes=1000 * MIB, token_budget=None)
    assert plan.slots == slots
