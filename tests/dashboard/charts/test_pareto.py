from __future__ import annotations

import random

import pytest

from rankloom_dashboard.charts.pareto import (
    adapter_sizes,
    draw_hypervolume,
    draw_pareto,
    hypervolume_info,
    pareto_info,
)
from rankloom_dashboard.charts.samples import Sample
from rankloom_dashboard.leaderboard import EVAL_LOSS, Objective

MOST = Objective(lower_is_better=False)


@pytest.fixture
def compared(trial, at):
    def compare(*pairs: tuple[float | None, float], objective: Objective = EVAL_LOSS):
        found = [Sample(trial=trial(n, wall_s=time), value=loss) for n, (time, loss) in enumerate(pairs)]
        return pareto_info(found, objective, x="time", y="loss", sizes={}, until=at(1000))

    return compare


def test_the_front_is_what_no_other_beats(compared) -> None:
    info = compared((10, 3.0), (20, 2.0), (30, 2.0), (20, 2.5), (40, 1.0), (5, 4.0))
    assert [trade.number for trade in info.front] == [5, 0, 1, 4]


def test_where_more_is_better_the_front_is_the_other(compared) -> None:
    info = compared((10, 3.0), (20, 2.0), (30, 5.0), objective=MOST)
    assert [trade.number for trade in info.front] == [0, 2]


def test_equals_stay_together_and_one_is_always_best(compared) -> None:
    assert [trade.best for trade in compared((10, 2.0), (10, 2.0), (10, 2.1)).trades] == [True, True, False]
    assert [trade.best for trade in compared((10, 2.0)).trades] == [True]
    assert compared().front == []


def test_what_lacks_a_measure_is_counted(compared) -> None:
    info = compared((None, 1.0), (10, 2.0))
    assert info.missing == 1
    assert [trade.number for trade in info.trades] == [1]


def test_the_hypervolume_grows_with_each_better_trade(compared, at) -> None:
    # The rectangle is 10 to 20 seconds by 1 to 3 of loss.
    info = compared((20, 3.0), (15, 2.0), (15, 2.5), (10, 3.0), (20, 1.0), (12, 1.5))
    course = hypervolume_info(info, EVAL_LOSS, at(0))
    assert course.seconds == (10, 20, 30, 40, 50, 60)
    assert course.shares == pytest.approx((0, 0.25, 0.25, 0.25, 0.25, 0.6))
    assert list(draw_hypervolume(course).data[0].y) == list(course.shares)


@pytest.mark.parametrize("objective", [EVAL_LOSS, MOST])
def test_the_hypervolume_is_the_area_that_is_counted_cell_by_cell(compared, at, objective: Objective) -> None:
    draws = random.Random(3)
    pairs = [(draws.randint(0, 10), float(draws.randint(0, 10))) for _ in range(40)] + [(0, 0.0), (10, 10.0)]
    shares = hypervolume_info(compared(*pairs, objective=objective), objective, at(0)).shares
    for count in (1, 2, 5, 20, 40):
        costs = [(x, y if objective.lower_is_better else 10 - y) for x, y in pairs[:count]]
        cells = sum(any(x <= column and y <= row for x, y in costs) for column in range(10) for row in range(10))
        assert shares[count - 1] == pytest.approx(cells / 100)


def test_one_trial_that_is_best_in_both_has_all_of_it(compared, at) -> None:
    course = hypervolume_info(compared((20, 1.0), (10, 3.0), objective=MOST), MOST, at(0))
    assert course.shares == pytest.approx((0, 1))


def test_without_a_rectangle_there_is_no_volume(compared, at) -> None:
    for pairs in ([], [(10, 2.0)], [(10, 2.0), (10, 3.0)]):
        assert hypervolume_info(compared(*pairs), EVAL_LOSS, at(0)).shares == ()


def test_the_size_follows_from_the_rank(trial, at) -> None:
    trials = [
        trial(0, 2.0, params={"r": 8, "target_modules": "mlp"}),
        trial(1, 1.9, params={"r": 16, "target_modules": ["q_proj", "v_proj"]}),
        trial(2, 1.8, params={"r": 16, "target_modules": "attention"}),
        trial(3, 1.7, params={}),
    ]
    sizes = adapter_sizes(trials, {"mlp": 2**17, "q_proj+v_proj": 2**16})
    assert sizes == {"t0": 2**20, "t1": 2**20}
    found = [Sample(trial=item, value=2.0 - item.number / 10) for item in trials]
    info = pareto_info(found, EVAL_LOSS, x="adapter size", y="loss", sizes=sizes, until=at(0))
    assert info.missing == 2
    assert [trade.number for trade in info.front] == [1]
    figure = draw_pareto(info, EVAL_LOSS, log=frozenset({"x"}))
    assert figure.layout.xaxis.title.text == "adapter size, MiB"
    assert [list(trace.x) for trace in figure.data] == [[1.0], [1.0]]
    assert figure.data[1].text[0] == "trial 1<br>adapter size 1 MiB<br>eval loss 1.9000"
