from __future__ import annotations

import math
import random

import pytest

from rankloom_dashboard.charts.axes import axes
from rankloom_dashboard.charts.importance import LEAST, draw_importance, importance_info
from rankloom_dashboard.charts.pairs import contour_info, draw_contour, draw_rank, pair_info
from rankloom_dashboard.charts.parallel_coordinates import draw_parallel_coordinates, parallel_coordinates_info
from rankloom_dashboard.charts.samples import Sample
from rankloom_dashboard.charts.slices import draw_slice, slice_info
from rankloom_dashboard.leaderboard import EVAL_LOSS, Objective

MOST = Objective(lower_is_better=False)
SPACE = {"parameters": {"learning_rate": {"loguniform": [1e-5, 1e-2]}, "r": {"choice": [4, 8, 16, 32]}}}


@pytest.fixture
def made(trial, search):
    """Thirty trials of which the learning rate decides, the rank hardly, and the dropout not at all."""

    def make(count: int = 30, sign: float = 1.0):
        dice = random.Random(0)
        found = []
        for number in range(count):
            exponent, r, dropout = dice.uniform(-5, -2), dice.choice([4, 8, 16, 32]), dice.choice([0.0, 0.05])
            params = {"learning_rate": 10**exponent, "r": r, "lora_dropout": dropout, "target_modules": "mlp"}
            found.append(
                Sample(trial=trial(number, params=params), value=sign * ((exponent + 3.5) ** 2 - 0.01 * math.log2(r)))
            )
        return found, axes(search(config={"space": SPACE}), found)

    return make


@pytest.mark.parametrize(("objective", "sign"), [(EVAL_LOSS, 1), (MOST, -1)])
def test_importance_finds_the_parameter_that_decides(made, objective: Objective, sign: float) -> None:
    found, told = made(60, sign)
    info = importance_info(found, told, objective)
    assert info[0].axis.name == "learning_rate"
    assert info[0].share > 0.5
    assert sum(item.share for item in info) == pytest.approx(1)
    assert {item.axis.name for item in info} == {"learning_rate", "r", "lora_dropout"}
    assert draw_importance(info).data[0].x[0] == info[0].share


def test_importance_of_too_little_is_none(made, trial) -> None:
    found, told = made(LEAST - 1)
    assert importance_info(found, told, EVAL_LOSS) == []
    found, told = made()
    assert importance_info(found, [], EVAL_LOSS) == []
    assert importance_info([Sample(trial=item.trial, value=1.0) for item in found], told, EVAL_LOSS) == []


def test_a_parameter_that_only_some_trials_have_counts_as_none_in_the_others(trial, search) -> None:
    """As of a space that is a function, which may ask for nothing or leave it out."""
    params = [{"warmup": "linear"}, {"warmup": None}, {}, {"warmup": "cosine"}] * 4
    found = [Sample(trial=trial(n, params=each), value=float(n % 4)) for n, each in enumerate(params)]
    told = axes(search(), found)
    assert [item.axis.name for item in importance_info(found, told, EVAL_LOSS)] == ["warmup"]
    assert len(parallel_coordinates_info(found, told, EVAL_LOSS).costs) == 16


def test_parallel_lines_cross_every_upright_and_the_best_come_last(made) -> None:
    found, told = made(5)
    for objective in (EVAL_LOSS, MOST):
        info = parallel_coordinates_info(found, told, objective)
        assert [item.title for item in info.dimensions] == ["learning_rate", "r", "lora_dropout", "eval loss"]
        assert all(len(item.values) == 5 for item in info.dimensions)
        assert info.costs == tuple(sorted(info.costs, reverse=True))
        assert info.dimensions[-1].values[-1] == objective.best(sample.value for sample in found)
        assert list(draw_parallel_coordinates(info).data[0].line.color) == [0, 1, 2, 3, 4]  # the best on top
        rate = info.dimensions[0]
        assert rate.low <= min(rate.values) <= max(rate.values) <= rate.high < -1  # powers of ten
        assert list(draw_parallel_coordinates(info).data[0].dimensions[3].values) == list(info.dimensions[3].values)


def test_parallel_lines_need_a_place_everywhere(made, trial) -> None:
    found, told = made(5)
    partly = [*found, Sample(trial=trial(9, params={"r": 8}), value=0.0)]
    assert len(parallel_coordinates_info(partly, told, EVAL_LOSS).costs) == 5
    assert parallel_coordinates_info([], [], EVAL_LOSS).dimensions == ()
    same = parallel_coordinates_info([Sample(trial=item.trial, value=2.0) for item in found], told, EVAL_LOSS)
    low, high = draw_parallel_coordinates(same).data[0].dimensions[-1].range
    assert low < 2.0 < high


def test_a_slice_says_what_was_stopped(made, trial) -> None:
    found, told = made(3)
    (rate, *_) = told
    found.append(Sample(trial=trial(3, status="stopped", params={"learning_rate": 1e-4}), value=9.0))
    found.append(Sample(trial=trial(4, params={"r": 4}), value=9.0))
    info = slice_info(found, rate)
    assert info.numbers == (0, 1, 2, 3)
    assert info.completed == (True, True, True, False)
    figure = draw_slice(info, EVAL_LOSS, log=True)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert draw_slice(slice_info([], rate), EVAL_LOSS).data[0].x == ()


def test_ranks_run_from_the_best_to_the_worst_and_ties_share(made) -> None:
    found, (rate, r, _) = made(4)
    found = [Sample(trial=item.trial, value=value) for item, value in zip(found, (3.0, 1.0, 2.0, 2.0), strict=True)]
    assert pair_info(found, rate, r, EVAL_LOSS).ranks == (1, 0, 0.5, 0.5)
    assert pair_info(found, rate, r, MOST).ranks == (0, 1, 0.5, 0.5)
    assert pair_info(found[:1], rate, r, EVAL_LOSS).ranks == (0,)
    assert pair_info([], rate, r, EVAL_LOSS).ranks == ()
    assert list(draw_rank(pair_info(found, rate, r, EVAL_LOSS), EVAL_LOSS).data[0].marker.color) == [1, 0.5, 0.5, 0]


def test_the_contour_fills_the_plane_and_never_exceeds_the_trials(made) -> None:
    found, (rate, r, dropout) = made()
    pair = pair_info(found, rate, r, EVAL_LOSS)
    info = contour_info(pair)
    assert len(info.field) == len(info.ys)
    assert {len(row) for row in info.field} == {len(info.xs)}
    known = [value for row in info.field for value in row if value is not None]
    assert min(pair.values) <= min(known) <= max(known) <= max(pair.values)
    assert draw_contour(info, EVAL_LOSS).data[0].type == "contour"
    assert contour_info(pair_info([], rate, dropout, EVAL_LOSS)).field == ()


@pytest.mark.parametrize(("objective", "sign"), [(EVAL_LOSS, 1), (MOST, -1)])
def test_one_bad_trial_does_not_take_all_colours(made, objective: Objective, sign: float) -> None:
    found, (rate, r, _) = made()
    found = [Sample(trial=item.trial, value=sign * (2 + item.trial.number / 100)) for item in found]
    found[3] = Sample(trial=found[3].trial, value=sign * 1000.0)
    drawn = draw_contour(contour_info(pair_info(found, rate, r, objective)), objective).data[0]
    assert sorted((abs(drawn.zmin), abs(drawn.zmax))) == pytest.approx([2, 2.3], abs=0.2)
    same = [Sample(trial=item.trial, value=2.0) for item in found]
    assert draw_contour(contour_info(pair_info(same, rate, r, objective)), objective).data[0].zmin is None


def test_the_contour_is_open_where_no_trial_is_near(trial, search) -> None:
    corners = [(0.0, 0.0), (0.1, 0.1), (10.0, 10.0)]
    found = [Sample(trial=trial(n, params={"a": a, "b": b}), value=float(n)) for n, (a, b) in enumerate(corners)]
    a, b = axes(search(), found)
    field = contour_info(pair_info(found, a, b, EVAL_LOSS)).field
    assert field[0][0] == pytest.approx(0.0)
    assert field[-1][-1] == pytest.approx(2.0)
    assert field[-1][0] is None


def test_categories_are_drawn_as_cells(made, trial, search) -> None:
    found = [
        Sample(trial=trial(n, params={"m": m, "r": r}), value=float(n))
        for n, (m, r) in enumerate([("<i>a</i>", 4), ("b", 8), ("b", 16)])
    ]
    m, r = axes(search(), found)
    info = contour_info(pair_info(found, m, r, EVAL_LOSS))
    assert info.xs == (0.0, 1.0)
    figure = draw_contour(info, MOST)
    assert figure.data[0].type == "heatmap"
    assert figure.data[0].reversescale
    assert "<i>" not in str(figure.to_dict())
