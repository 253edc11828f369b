from __future__ import annotations

from dataclasses import replace

import pytest

from rankloom_dashboard.charts.learning_curves import (
    curve,
    draw_compared_curves,
    draw_learning_curves,
    learning_curves_info,
)
from rankloom_dashboard.charts.search_history import draw_search_history, search_history_info
from rankloom_dashboard.charts.style import ROLE_COLORS, ROLE_PATTERNS, ROLE_SYMBOLS
from rankloom_dashboard.leaderboard import Objective
from rankloom_registry import Registry, StepMetrics


@pytest.fixture
def search(made_once):
    with Registry.open(made_once.path) as registry:
        trials = registry.trials(made_once.search_id)
        return trials, {trial.trial_id: registry.step_metrics(trial.trial_id) for trial in trials}


def test_learning_curves_leave_out_trials_without_a_loss_and_end_with_the_best(search) -> None:
    curves = learning_curves_info(*search)
    assert [item.label for item in curves][-2:] == ["trial 0", "trial 5"]
    assert [item.role for item in curves][-2:] == ["prior", "best"]
    assert {item.label for item in curves if item.role == "stopped"} == {"trial 1", "trial 3", "trial 7"}
    assert "trial 6" not in {item.label for item in curves}
    assert curves[-1].steps == (15, 30, 45, 60)


def test_a_curve_skips_steps_at_which_its_loss_was_not_measured() -> None:
    points = [
        StepMetrics(trial_id="t", step=1, train_loss=3.0),
        StepMetrics(trial_id="t", step=2, train_loss=2.5, eval_loss=2.7),
        StepMetrics(trial_id="t", step=3, train_loss=float("nan")),
    ]
    assert curve("a", points).losses == (2.7,)
    assert curve("a", points, loss="train_loss").steps == (1, 2)


def test_each_role_stands_in_the_legend_once(search) -> None:
    figure = draw_learning_curves(learning_curves_info(*search))
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(named) == ["best · trial 5", "completed", "prior · trial 0", "stopped early"]
    (stopped,) = [trace for trace in figure.data if trace.name == "stopped early"]
    best = figure.data[-1]
    assert best.name == "best · trial 5"
    assert stopped.line.width < best.line.width


def test_only_the_best_are_taken_and_the_prior_to_hold_them_against(search) -> None:
    def labels(**chosen) -> set[str]:
        return {item.label for item in learning_curves_info(*search, **chosen)}

    assert labels(top=2) == {"trial 5", "trial 2", "trial 0"}
    assert labels(top=2, objective=Objective(lower_is_better=False)) == {"trial 7", "trial 1", "trial 0"}
    assert labels(stopped=False) == {"trial 0", "trial 2", "trial 4", "trial 5"}
    assert labels(top=100) == labels() - {"trial 6"}
    trials, metrics = search
    stopped_best = [replace(trial, status="stopped") for trial in trials]
    assert {item.label for item in learning_curves_info(stopped_best, metrics, stopped=False)} == {"trial 0", "trial 5"}
    assert learning_curves_info([], {}, top=3) == []


def test_log_axes_are_drawn_as_such(search) -> None:
    figure = draw_learning_curves(learning_curves_info(*search), y="train loss", log={"x", "y"})
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.title.text == "train loss, nats a token"
    assert draw_learning_curves([]).layout.xaxis.type == "linear"


def test_an_axis_with_a_zero_stays_linear_and_says_so() -> None:
    """Plotly would leave out the points without a word."""
    points = [StepMetrics(trial_id="t", step=step, eval_loss=loss) for step, loss in ((0, 2.0), (1, 0.0), (2, 1.0))]
    figure = draw_learning_curves([curve("a", points), curve("b", points[:1])], log={"x", "y"})
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert axis.type == "linear" and "0 or less has no logarithm" in axis.title.text
    figure = draw_learning_curves([curve("a", points[1:])], log={"x"})
    assert (figure.layout.xaxis.type, figure.layout.xaxis.title.text) == ("log", "step")


def test_roles_are_told_apart_without_their_colour() -> None:
    """Curves by dash and width, points by symbol, bars by pattern."""
    assert len(set(ROLE_SYMBOLS.values())) == len(ROLE_COLORS)
    points = [StepMetrics(trial_id="t", step=step, eval_loss=1.0) for step in (1, 2)]
    figure = draw_learning_curves([curve(role, points, role=role) for role in ROLE_COLORS])
    assert len({(trace.line.dash, trace.line.width) for trace in figure.data}) == len(ROLE_COLORS)
    states = ("completed", "stopped", "failed", "running", "interrupted")
    assert len({ROLE_PATTERNS[state] for state in states}) == len(states)


def test_a_curve_of_one_point_can_be_seen(search) -> None:
    trials, metrics = search
    figure = draw_learning_curves(learning_curves_info([trials[1]], metrics))
    assert figure.data[0].mode == "lines+markers"


def test_labels_reach_plotly_as_text() -> None:
    points = [StepMetrics(trial_id="t", step=1, eval_loss=1.0)]
    figure = draw_compared_curves([curve('<a href="http://evil.example">x</a>', points)])
    assert "<" not in figure.data[0].name
    assert "<" not in figure.data[0].text[0]


def test_history_follows_the_best_so_far_and_the_gain(search) -> None:
    info = search_history_info(search[0])
    assert [point.number for point in info.points] == [0, 1, 2, 3, 4, 5, 7]
    assert list(info.best_so_far) == sorted(info.best_so_far, reverse=True)
    assert info.best_so_far[-1] == min(point.loss for point in info.points)
    assert info.points[0].gain == 0
    assert info.points[5].role == "best"
    assert info.prior == info.points[0].loss


def test_history_without_a_prior_has_no_gain_and_no_level(search) -> None:
    info = search_history_info([replace(search[0][0], eval_loss=None), search[0][2]])
    assert info.prior is None
    assert info.points[0].gain is None
    assert not draw_search_history(info).layout.shapes
