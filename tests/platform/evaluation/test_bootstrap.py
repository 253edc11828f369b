from __future__ import annotations

import math

import numpy as np
import pytest

from rankloom.evaluation.bootstrap import mean_interval, paired_interval


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        tokens = draws.integers(5, 30, 60)
        before = draws.normal(2, 0.5, 60) * tokens
        after = before + draws.normal(0.1, 0.2, 60) * tokens
        low, high = paired_interval(before, after, tokens, resamples=400) or (0, 0)
        held += low <= 0.1 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_an_interval_depends_on_nothing_but_the_rows() -> None:
    assert paired_interval([4, 6, 9], [5, 7.5, 11], [2, 3, 4]) == (0.5, 0.5)
    assert paired_interval([4, 6, 9], [5, 6, 12], [2, 3, 4]) == paired_interval([4, 6, 9], [5, 6, 12], [2, 3, 4])
    assert paired_interval([1], [2], [2]) is None
    low, high = mean_interval([4, 6, 9], [2, 3, 4]) or (0, 0)
    assert low == 2 and high == pytest.approx(9 / 4)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_no_number_has_no_interval(odd: float) -> None:
    assert mean_interval([4, odd, 9], [2, 3, 4]) is None
    assert paired_interval([4, odd, 9], [4, odd, 8], [2, 3, 4]) is None
