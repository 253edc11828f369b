"""How many slots a lane should have: as many as fit in memory, and no more than pay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Measured: on 2 CPU cores packing pays up to about a thousand tokens a pass (docs/benchmarks.md). A GPU is measured.
CPU_TOKENS = 1024
# Of the memory that is free; the rest is for fragmentation and for rows longer than the probe's.
USABLE = 0.85
# Twice the slots must train so much more in the same time; below it, the device is full.
WORTHWHILE = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One measured step of so many slots.

    Attributes:
        seconds: How long it took.
        bytes: Memory at its peak, beyond what the base takes.
    """

    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    """How many slots, and why not more."""

    slots: int
    reason: str


def plan_slots(
    probe: Callable[[int], Probe | None],
    *,
    most: int,
    tokens_per_slot: int,
    available_bytes: int,
    token_budget: int | None,
) -> SlotPlan:
    """Choose a number of slots.

    Args:
        probe: Runs one step with so many slots and measures it; None where memory ran out.
        most: More would never be filled.
        tokens_per_slot: Tokens that one slot brings to a pass.
        available_bytes: Free memory beside the base.
        token_budget: Tokens a pass at which the device is full; None measures it, by
            doubling the slots while that pays.

    Returns:
        The plan; 1 slot where packing would not pay.
    """
    if most == 1:
        return SlotPlan(slots=1, reason="there is one trial at a time")
    if token_budget is not None and token_budget < 2 * tokens_per_slot:
        return SlotPlan(slots=1, reason=f"one trial's {tokens_per_slot} tokens a pass fill the device")
    measured = probe(1)
    if measured is None:
        return SlotPlan(slots=1, reason="one step of the largest adapter ran out of memory")
    fitting = max(1, int(available_bytes * USABLE / max(1, measured.bytes)))
    memory = f"a slot takes {measured.bytes / 2**20:.0f} MiB of {available_bytes / 2**20:.0f} MiB free"
    if token_budget is not None:
        paying = token_budget // tokens_per_slot
        if fitting < min(paying, most):
            return SlotPlan(slots=fitting, reason=memory)
        if most <= paying:
            return SlotPlan(slots=most, reason="that is as many as the search trains at a time")
        return SlotPlan(slots=paying, reason=f"about {token_budget} tokens a pass fill the device; {memory}")
    slots = 1
    while 2 * slots <= min(most, fitting):
        doubled = probe(2 * slots)
        if doubled is None or doubled.bytes > available_bytes * USABLE:
            return SlotPlan(slots=slots, reason=memory)
        if 2 * measured.seconds / doubled.seconds < WORTHWHILE:
            return SlotPlan(slots=slots, reason=f"{slots} slots of {tokens_per_slot} tokens fill the device; {memory}")
        slots, measured = 2 * slots, doubled
    # Between the last doubling and the limit nothing was measured; the limit is where the doubling would have led.
    slots = min(most, fitting)
    return SlotPlan(slots=slots, reason=memory if fitting < most else "that is as many as the search trains at a time")
