from __future__ import annotations

import math

from rankloom_dashboard.charts.samples import samples
from rankloom_dashboard.leaderboard import EVAL_LOSS, Objective
from rankloom_registry import StepMetrics


def points(number: int, **losses: float) -> list[StepMetrics]:
    return [
        StepMetrics(trial_id=f"t{number}", step=int(step[1:]), eval_loss=loss, train_loss=loss - 0.5)
        for step, loss in losses.items()
    ]


def test_only_what_ran_to_its_end_counts_unless_asked_for(trial) -> None:
    trials = [
        trial(3, 2.0),
        trial(1, 2.5, "stopped"),
        trial(2, 1.0, "failed"),
        trial(4, 1.5, "running"),
        trial(5, math.nan),
        trial(6, None),
    ]
    assert [(item.trial.number, item.value) for item in samples(trials, {}, EVAL_LOSS)] == [(3, 2.0)]
    both = samples(trials, {}, EVAL_LOSS, "stopped too")
    assert [(item.trial.number, item.value) for item in both] == [(1, 2.5), (3, 2.0)]


def test_at_the_first_evaluation_all_have_had_the_same_training(trial) -> None:
    trials = [trial(0, 2.0), trial(1, 2.9, "stopped"), trial(2, 2.7, "failed"), trial(3, None, "running")]
    metrics = {
        "t0": points(0, s15=2.8, s30=2.0),
        "t1": points(1, s15=2.9),
        "t2": points(2, s30=2.7),
        "t3": points(3, s5=math.nan),
    }
    found = samples(trials, metrics, EVAL_LOSS, "first evaluation")
    assert [(item.trial.number, item.value) for item in found] == [(0, 2.8), (1, 2.9)]
    other = samples(trials, metrics, Objective(column="train_loss"), "first evaluation")
    assert [item.value for item in other] == [2.3, 2.4]


def test_of_no_trials_there_are_no_samples() -> None:
    assert samples([], {}, EVAL_LOSS) == samples([], {}, EVAL_LOSS, "first evaluation") == []
