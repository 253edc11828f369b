from __future__ import annotations

import math

import pytest

from rankloom_dashboard.charts.device_time import device_time
from rankloom_dashboard.charts.search_history import draw_search_history, search_history_info
from rankloom_dashboard.leaderboard import EVAL_LOSS, Objective

MOST = Objective(lower_is_better=False)


@pytest.mark.parametrize("objective", [EVAL_LOSS, MOST])
def test_of_no_values_there_is_nothing(trial, objective: Objective) -> None:
    for trials in ([], [trial(0)], [trial(0, math.nan), trial(1, math.inf)]):
        info = search_history_info(trials, objective)
        assert info.points == info.best_so_far == ()
        draw_search_history(info)


def test_the_best_so_far_follows_the_direction(trial) -> None:
    trials = [trial(0, 2.0), trial(1, 3.0), trial(2, 1.0), trial(3, 1.0)]
    assert search_history_info(trials).best_so_far == (2.0, 2.0, 1.0, 1.0)
    assert search_history_info(trials, MOST).best_so_far == (2.0, 3.0, 3.0, 3.0)
    roles = [point.role for point in search_history_info(trials).points]
    assert roles == ["prior", "completed", "best", "completed"]  # of two as good, the earlier
    assert [point.gain for point in search_history_info(trials, MOST).points] == [0, 1, -1, -1]


def test_what_failed_is_shown_and_is_never_the_best(trial) -> None:
    info = search_history_info([trial(1, 0.5, "failed"), trial(2, 2.0), trial(3, 0.1, "failed")])
    assert info.best_so_far == (None, 2.0, 2.0)
    assert [point.role for point in info.points] == ["failed", "best", "failed"]
    only = search_history_info([trial(1, 0.5, "failed")])
    assert only.best_so_far == (None,)


def test_over_time_a_trial_counts_when_it_ends_and_one_that_runs_counts_now(trial, at) -> None:
    trials = [trial(0, 2.0, ended_at=at(40)), trial(1, 1.5, ended_at=at(30)), trial(2, 1.8, "running")]
    info = search_history_info(trials, against="time", began=at(0), until=at(50))
    assert [(point.number, point.at) for point in info.points] == [(1, 30), (0, 40), (2, 50)]
    assert info.best_so_far == (1.5, 1.5, 1.5)


def test_over_device_time_a_second_of_a_lane_counts_once(trial, span, at) -> None:
    # lane-0 trains two at once and idles for ten seconds; lane-1 trains one.
    spans = [
        span(0, 0, 20, slot=0),
        span(1, 5, 15, slot=1),
        span(2, 30, None, slot=0),
        span(3, 10, 20, lane="lane-1"),
    ]
    spent = device_time(spans, at(40))
    assert [spent.at(at(seconds)) for seconds in (0, 10, 15, 20, 30, 40)] == [0, 10, 20, 30, 30, 40]
    assert sum(item.ended_at is None for item in spans) == 1
    trials = [trial(0, 2.0, ended_at=at(20)), trial(1, 2.5, ended_at=at(15)), trial(2, 1.0, "running")]
    info = search_history_info(trials, against="device time", spans=spans, began=at(0), until=at(40))
    assert [(point.number, point.at) for point in info.points] == [(1, 20), (0, 30), (2, 40)]


def test_lanes_that_overlap_and_ones_that_idle_add_up(span, at) -> None:
    spans = [span(n, 10 * n, 10 * n + 7, lane=f"lane-{n % 3}") for n in range(60)]
    spent = device_time(spans, at(0))
    for seconds in (-5, 0, 3, 7, 8, 95, 300.5, 597, 10_000):
        wanted = sum(max(0, min(10 * n + 7, seconds) - 10 * n) for n in range(60))
        assert spent.at(at(seconds)) == pytest.approx(wanted)


def test_without_the_times_of_the_search_the_axis_is_of_trials(trial) -> None:
    info = search_history_info([trial(3, 2.0)], against="time")
    assert (info.against, info.points[0].at) == ("trials", 3)
    assert draw_search_history(info).layout.xaxis.title.text == "trial"


def test_no_attempts_have_cost_nothing(at) -> None:
    assert device_time([], at(0)).at(at(100)) == 0


def test_the_unit_of_time_follows_its_length(trial, at) -> None:
    trials = [trial(0, 2.0, ended_at=at(7200 * 4))]
    figure = draw_search_history(
        search_history_info(trials, against="time", began=at(0), until=at(0)), x="time", log={"y"}
    )
    assert figure.layout.xaxis.title.text == "time, hours"
    assert figure.data[0].x[0] == 8
    assert figure.layout.yaxis.type == "log"
