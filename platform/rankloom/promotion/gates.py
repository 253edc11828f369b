"""The gates of a promotion, in their order: each says in one message what it found, and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankloom.belongs import check_base
from rankloom.errors import PromotionError, RankloomError
from rankloom.models import BaseModel, resolve_base, split_identity
from rankloom.promotion.drift import Drift
from rankloom_registry import Adapter, Registry, RegistryError

OnBytes = Callable[[int, int], None]
OnGate = Callable[[str, dict[str, Any]], None]
TOLERANCE = 0.05  # nats a token; docs/promotion.md says why
LOST_GAIN = 0.05  # share of what the adapter gained over its base
FAITHFUL = 3.0  # times the divergence that another precision alone causes
_NAMED = 3  # tensors a message names
_SPARE_BYTES = 64 << 20  # of small files, and of what else the disk is needed for


@contextmanager
def gate(name: str, on_gate: OnGate) -> Iterator[dict[str, Any]]:
    """Tell of a gate, once it is passed or closed.

    Args:
        name: Its name.
        on_gate: Called with the name and the figures; `passed` is one of them, and `problem` if it is closed.

    Yields:
        The figures, to be filled in.
    """
    figures: dict[str, Any] = {}
    try:
        yield figures
    except (RankloomError, RegistryError) as error:
        on_gate(name, figures | {"passed": False, "problem": str(error)})
        raise
    on_gate(name, {"passed": True} | figures)


def prove_base(
    registry: Registry, adapter: Adapter, given: str | None, on_bytes: OnBytes | None = None
) -> tuple[BaseModel, dict[str, Any]]:
    """First gate: the base is the one that the adapter was trained on, by the content of its tensors.

    Args:
        registry: Where the adapter is registered.
        adapter: The adapter.
        given: Where the base is now; by default where it was when the adapter was trained.
        on_bytes: Called with the bytes of the base hashed so far and in all.

    Returns:
        The base, and the figures.

    Raises:
        ModelError: There is no base at that place.
        PromotionError: Tensors that the adapter modifies are other ones, or any other tensor is.
    """
    recorded = registry.base(adapter.base_content_root)
    base = resolve_base(*(split_identity(recorded.identity) if given is None else (given, None)))
    check = check_base(registry, adapter.adapter_id, str(base.path), progress=on_bytes)
    if not check.belongs:
        head = (
            f"adapter {adapter.adapter_id} belongs to the base with content root {check.expected_content_root[:16]}… "
            f"({recorded.identity}), but {base.path} has {check.content_root[:16]}…"
        )
        touched = [change.name for change in check.tensors if change.touched]
        others = [change.name for change in check.tensors if not change.touched]
        if touched:
            what = f"; tensors that the adapter modifies differ: {_some(touched)}"
        elif others:
            what = f"; the tensors that the adapter modifies are the same, but others differ: {_some(others)}"
        else:
            what = ""
        raise PromotionError(f"{head}{what}: give the folder of the right base with --base")
    return base, {
        "passed": True,
        "content_root": check.content_root,
        "touched_tensors": check.touched,
        "touched_root_agrees": check.touched_root_agrees,
        "other_differences": list(check.other_differences),
    }


def assert_room(folder: Path, needed: int) -> dict[str, Any]:
    """Third gate: what will be written fits on the disk.

    Args:
        folder: A folder of that disk.
        needed: Bytes.

    Returns:
        The figures.

    Raises:
        PromotionError: It does not fit.
    """
    needed += _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PromotionError(
            f"this promotion needs {needed:,} bytes at a time in {folder}, which has {free:,} free: free some, choose "
            "an --output on another disk, or leave out the comparison of recipes (--no-compare)"
        )
    return {"passed": True, "needed_bytes": needed, "free_bytes": free}


def judge_drift(
    *,
    what: str,
    drift: Drift,
    floor: Drift,
    adapter_loss: float,
    base_loss: float,
    tolerance: float | None,
    alternatives: Mapping[str, Drift],
) -> tuple[dict[str, Any], str | None]:
    """Last gate: the model predicts what the adapter predicted, or at least it is no worse.

    Args:
        what: What was measured, such as 'merged in full precision'.
        drift: It, on the held-out rows.
        floor: The adapter itself in another precision: what rounding alone does.
        adapter_loss: The adapter's loss as trained, nats a token.
        base_loss: Its base's without it.
        tolerance: How much the loss may lie above the adapter's; None for a twentieth of what the adapter gained over
            its base, but not less than 0.05.
        alternatives: Other models made of the adapter, by what the user would ask for.

    Returns:
        The figures, and why the model should not go out, or None.
    """
    allowed = max(TOLERANCE, LOST_GAIN * (base_loss - adapter_loss)) if tolerance is None else tolerance
    faithful = drift.kl <= FAITHFUL * floor.kl and tolerance is None
    no_worse = drift.delta <= allowed  # False for NaN
    figures: dict[str, Any] = {
        "passed": faithful or no_worse,
        "verdict": "faithful" if faithful else "no worse" if no_worse else "worse",
        "tolerance": allowed,
        "kl_floor": floor.kl,
        # Whether the rows are enough to tell: the whole interval is on one side of the tolerance.
        "certain": drift.high is not None and drift.low is not None and (drift.high <= allowed or drift.low > allowed),
    }
    if figures["passed"]:
        return figures, None
    between = "" if drift.low is None else f" (95% interval {drift.low:+.4f} to {drift.high:+.4f})"
    better = [
        f"{option} ({other.delta:+.4f}, KL {other.kl:.3f})"
        for option, other in alternatives.items()
        if other.delta <= allowed
    ]
    return figures, (
        f"the model, {what}, has a loss of {drift.loss:.4f}, the adapter as trained {adapter_loss:.4f} nats a token: "
        f"the difference {drift.delta:+.4f}{between} is beyond the tolerance {allowed:.4g}, and its predictions differ "
        f"by KL {drift.kl:.3f}, {drift.kl / floor.kl if floor.kl else float('inf'):.0f} times what rounding does; "
        + (f"take {' or '.join(better)}, or " if better else "")
        + "keep the adapter on its 4-bit base (--format adapter), or override with --force --reason"
    )


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
