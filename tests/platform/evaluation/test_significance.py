from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rankloom.evaluation.significance import compare


def of(metric: str, before: list[float | None], after: list[float | None], **options):
    found = compare(metric, ("base", before), ("a1", after), **options)
    assert found is not None
    return found


def test_a_loss_that_is_lower_on_every_row_is_better() -> None:
    before = [2.0 + 0.01 * row for row in range(20)]
    found = of("loss", before, [loss - 0.5 for loss in before], weights=[10.0] * 20)
    assert found.difference == pytest.approx(-0.5)
    assert found.low == pytest.approx(-0.5) and found.high == pytest.approx(-0.5)
    assert found.verdict == "better" and found.p is not None and found.p < 0.001
    assert (found.wins, found.regressions, found.regressed) == (20, (), 0.0)
    back = of("loss", [loss - 0.5 for loss in before], before, weights=[10.0] * 20)
    assert back.verdict == "worse" and back.regressed == 1 and back.wins == 0


def test_a_loss_counts_each_token_and_not_each_row() -> None:
    found = of("loss", [1.0, 1.0], [2.0, 0.5], weights=[1.0, 9.0])
    assert found.difference == pytest.approx((1.0 * 1 - 0.5 * 9) / 10)


def test_noise_is_no_difference() -> None:
    draws = np.random.default_rng(1)
    before = draws.normal(2, 0.5, 60).tolist()
    found = of("loss", before, (np.asarray(before) + draws.normal(0, 0.2, 60)).tolist())
    assert found.verdict == "undecided" and found.p is not None and found.p > 0.05
    assert found.low is not None and found.high is not None and found.low < found.difference < found.high


def test_chance_calls_a_difference_as_often_as_it_should() -> None:
    """Of pairs without a difference one in twenty has p below 0.05."""
    draws = np.random.default_rng(7)
    ps = [of("loss", [0.0] * 15, draws.normal(size=15).tolist()).p for _ in range(120)]
    assert 0 <= sum(p < 0.05 for p in ps if p is not None) <= 14


def test_exact_matches_are_tested_as_mcnemar_does() -> None:
    """9 rows better and 1 worse of 30: two-sided binomial, 2 * (1 + 10) / 1024."""
    before = [0.0] * 9 + [1.0] + [1.0] * 20
    after = [1.0] * 9 + [0.0] + [1.0] * 20
    found = of("exact_match", before, after)
    assert found.p == pytest.approx(22 / 1024)
    assert found.difference == pytest.approx(8 / 30) and found.verdict == "better"
    assert found.regressions == (9,) and found.wins == 9
    assert of("exact_match", before, before).p == 1


def test_what_got_worse_is_listed_from_the_worst() -> None:
    found = of("rouge_l", [0.9, 0.5, 0.5, 0.8, 0.1], [0.1, 0.45, 0.9, 0.5, 0.1])
    assert found.regressions == (0, 3)  # a loss of 0.05 lies within the margin
    assert found.wins == 1 and found.margin == 0.1 and found.regressed == 0.4


def test_rows_without_a_value_are_left_out_and_keep_their_places() -> None:
    found = of("exact_match", [None, 1.0, None, 1.0], [0.0, 1.0, None, 0.0])
    assert found.rows == 2 and found.regressions == (3,)
    assert compare("exact_match", ("base", [None]), ("a1", [1.0])) is None


def test_a_model_that_gives_no_number_is_worse() -> None:
    found = of("loss", [1.0, 1.0, 1.0], [0.5, math.nan, 0.2])
    assert found.verdict == "worse" and found.regressions == (1,) and found.p is None and found.low is None


def test_two_models_that_change_places_change_their_verdict_only() -> None:
    """Also where a base gives no number on a row that its adapter has mended."""
    mirrored = {"better": "worse", "worse": "better", "undecided": "undecided"}
    whole = [1.0, 1.0, 1.0]
    for losses in ([math.nan, 0.5, 0.2], [math.inf, 0.5, 0.2], [0.5] * 3, [math.nan, math.inf, math.nan]):
        there, back = of("loss", whole, losses), of("loss", losses, whole)
        assert mirrored[there.verdict] == back.verdict
        assert (there.wins, len(there.regressions)) == (len(back.regressions), back.wins)
    mended = of("loss", [math.nan, 1.0], [0.5, 1.0])
    assert (mended.verdict, mended.wins, mended.regressions) == ("better", 1, ())
    each_breaks_one = of("loss", [math.nan, 1.0], [1.0, math.nan])
    assert (each_breaks_one.verdict, each_breaks_one.wins, each_breaks_one.regressions) == ("undecided", 1, (1,))


@pytest.mark.parametrize(("rows", "verdict"), [(1, "undecided"), (2, "undecided"), (5, "undecided"), (6, "better")])
def test_fewer_than_six_rows_decide_nothing(rows: int, verdict: str) -> None:
    """Even if all are better: of five rows that come about by chance once in 2 / 2**5 times."""
    found = of("loss", [1.0 + 0.1 * row for row in range(rows)], [0.2 + 0.11 * row for row in range(rows)])
    assert found.verdict == verdict
    assert found.p == pytest.approx(2 / 2**rows, rel=0.2) and (found.p < 0.05) == (verdict == "better")
    assert (found.low is None) == (rows == 1)


def test_only_values_of_0_and_1_are_tested_as_mcnemar_does() -> None:
    """Nine rows of one token are better by exactly 1, and one of a hundred tokens is worse by that."""
    before, after = [3.0] * 9 + [2.0], [2.0] * 9 + [3.0]
    found = of("loss", before, after, weights=[1.0] * 9 + [100.0])
    assert found.difference > 0 and found.p is not None and found.p > 0.5
    assert of("exact_match", [0.0] * 10, [1.0] * 10).p == 2 / 2**10


def test_where_lower_is_better_can_be_said() -> None:
    found = of("my.word_perplexity", [3.0] * 6, [2.0] * 6, higher_is_better=False)
    assert found.verdict == "better" and found.wins == 6
    assert json.loads(json.dumps(found.to_dict()))["regressions"] == []
