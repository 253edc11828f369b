"""Between what a figure lies, had other rows been held out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_RESAMPLES = 10_000
_LEVEL = 0.95
_ROWS_AT_ONCE = 1 << 18  # that are drawn: a few megabytes


def paired_interval(
    before: ArrayLike,
    after: ArrayLike,
    weights: ArrayLike,
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Estimate between what a difference of two weighted means lies, had other rows been held out.

    Rows are drawn again with replacement, both models' together; percentiles of the difference (Efron, 1979).

    Args:
        before: One model's total of each row, such as its NLL in nats.
        after: Another model's, of the same rows.
        weights: What a row counts, such as its tokens.
        resamples: How often rows are drawn.
        seed: Of the draws.

    Returns:
        Ends of the 95% interval of `(sum(after) - sum(before)) / sum(weights)`; None for a single row, and where a
        total is no finite number.
    """
    old, new, weight = (np.asarray(side, dtype=np.float64) for side in (before, after, weights))
    count = len(weight)
    if count < 2 or not np.isfinite([old, new]).all():
        return None
    difference = new - old
    draws = np.random.default_rng(seed)
    at_once = max(1, _ROWS_AT_ONCE // count)
    means = []
    for start in range(0, resamples, at_once):
        chosen = draws.integers(count, size=(min(at_once, resamples - start), count))
        means.append(difference[chosen].sum(axis=1) / weight[chosen].sum(axis=1))
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def mean_interval(totals: ArrayLike, weights: ArrayLike) -> tuple[float, float] | None:
    """Estimate between what a weighted mean lies, as `paired_interval` does for a difference."""
    return paired_interval(np.zeros_like(totals, dtype=np.float64), totals, weights)
