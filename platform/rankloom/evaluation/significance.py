"""Whether one model is better than another on the same rows, and on which of them it is worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from rankloom.evaluation.bootstrap import paired_interval

# From which difference on a row counts as worse: nats a token, or a share.
MARGINS = {"loss": 0.1, "exact_match": 0.0, "rouge_l": 0.1}
LOWER_IS_BETTER = ("loss",)
LEAST_ROWS = 6  # that decide: of fewer, all on one side come about by chance in more than 1 of 20 cases, 2 / 2**rows
_FLIPS = 10_000
_FLIPS_AT_ONCE = 100
_Values = np.ndarray[Any, np.dtype[np.float64]]
_Flags = np.ndarray[Any, np.dtype[np.bool_]]
Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One model beside another on the same rows, by one metric.

    Attributes:
        metric: 'loss' (nats a token), 'exact_match' or 'rouge_l' (shares), or a task's.
        before: Whom it is compared with: an adapter's id, or 'base'.
        after: Who is compared.
        rows: On how many rows both have a value.
        difference: `after`'s mean less that of `before`; of a loss, over tokens.
        low: Lower end of its 95% interval, by a paired bootstrap over rows; None for a single row, and where a value is
            not finite.
        high: Its upper end.
        p: Probability of a difference as large if the two were alike: McNemar's exact test for values of 0 and 1, else
            signs of the differences flipped at random. Not corrected for the number of comparisons; None where a value
            is not finite.
        wins: Rows on which `after` is better by more than the margin.
        regressions: Places of the rows on which it is worse by more than the margin, the worst first.
        margin: That margin.
        verdict: 'better' or 'worse' if there are six rows or more and the whole interval lies on that side of none, or
            if there are rows on which one of the two alone gives a number; else 'undecided'.
    """

    metric: str
    before: str
    after: str
    rows: int
    difference: float
    low: float | None
    high: float | None
    p: float | None
    wins: int
    regressions: tuple[int, ...]
    margin: float
    verdict: Verdict

    @property
    def regressed(self) -> float:
        """Share of the rows on which `after` is worse by more than the margin."""
        return len(self.regressions) / self.rows

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready values."""
        return {**asdict(self), "regressions": list(self.regressions), "regressed": self.regressed}


def compare(
    metric: str,
    before: tuple[str, Sequence[float | None]],
    after: tuple[str, Sequence[float | None]],
    *,
    weights: Sequence[float] | None = None,
    higher_is_better: bool | None = None,
) -> Comparison | None:
    """Compare two models by one metric, row by row.

    Args:
        metric: Its name; `loss` is better where it is lower, others where they are higher.
        before: A model's name and its value on each row, None where it has none.
        after: Another's, on the same rows.
        weights: What a row's value counts: tokens for a loss; by default each row the same.
        higher_is_better: Overrides what the name says.

    Returns:
        What was found; None if there is no row on which both have a value.
    """
    pairs = [
        (place, old, new)
        for place, (old, new) in enumerate(zip(before[1], after[1], strict=True))
        if old is not None and new is not None
    ]
    if not pairs:
        return None
    places = [place for place, _, _ in pairs]
    weight = np.asarray([1.0 if weights is None else weights[place] for place in places])
    old, new = (np.asarray([pair[side] for pair in pairs], dtype=np.float64) for side in (1, 2))
    lower = metric in LOWER_IS_BETTER if higher_is_better is None else not higher_is_better
    margin = MARGINS.get(metric, 0.0)
    with np.errstate(invalid="ignore"):  # two infinities differ by no number
        change = new - old
        difference = float((change * weight).sum() / weight.sum())
    won = -change if lower else change
    # A model that gives no number on a row is worse there than one that does.
    mended, broken = np.isfinite(new) & ~np.isfinite(old), np.isfinite(old) & ~np.isfinite(new)
    finite = bool(np.isfinite([old, new]).all())
    low, high = paired_interval(old * weight, new * weight, weight) or (None, None)
    better, worse = mended | (won > margin), np.flatnonzero(broken | (won < -margin)).tolist()
    return Comparison(
        metric=metric,
        before=before[0],
        after=after[0],
        rows=len(pairs),
        difference=difference,
        low=low,
        high=high,
        p=_p(old, new, weight) if finite else None,
        wins=int(better.sum()),
        regressions=tuple(places[row] for row in sorted(worse, key=lambda row: (not broken[row], won[row]))),
        margin=margin,
        verdict=_verdict(low, high, lower) if finite and len(pairs) >= LEAST_ROWS else _broken(mended, broken),
    )


def _verdict(low: float | None, high: float | None, lower_is_better: bool) -> Verdict:
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    return "better" if (high < 0) == lower_is_better else "worse"


def _broken(mended: _Flags, broken: _Flags) -> Verdict:
    if mended.any() == broken.any():
        return "undecided"
    return "worse" if broken.any() else "better"


def _p(old: _Values, new: _Values, weight: _Values) -> float:
    differences = new - old
    return _mcnemar(differences) if {*old, *new} <= {0.0, 1.0} else _flipped_signs(differences * weight)


def _mcnemar(differences: _Values) -> float:
    """The exact test of McNemar (1947): two-sided binomial over the rows on which the two disagree."""
    rows, fewer = int((differences != 0).sum()), int(min((differences > 0).sum(), (differences < 0).sum()))
    tail = ways = 1
    for count in range(fewer):  # each binomial coefficient from the one before, as `math.comb` begins anew
        ways = ways * (rows - count) // (count + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << rows))


def _flipped_signs(differences: _Values, *, seed: int = 0) -> float:
    """Fisher's randomization test for pairs, with signs drawn at random; never below 1 in the number of draws."""
    draws = np.random.default_rng(seed)
    seen = abs(differences.sum())
    as_large = 0
    for _ in range(_FLIPS // _FLIPS_AT_ONCE):
        signs = draws.integers(0, 2, size=(_FLIPS_AT_ONCE, len(differences))) * 2 - 1
        # What differs by rounding alone is as large.
        as_large += int((abs(signs @ differences) >= seen * (1 - 1e-9)).sum())
    return (as_large + 1) / (_FLIPS + 1)
