from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rankloom_dashboard.leaderboard import (
    EVAL_LOSS,
    Objective,
    best_trial,
    gain,
    leaderboard_rows,
    objective_of,
    parameters,
    prior_loss,
    rank,
    rung,
    rung_steps,
)
from rankloom_registry import Registry, SearchRecord, StepMetrics, TrialRecord


@pytest.fixture
def trials(made_once) -> list[TrialRecord]:
    with Registry.open(made_once.path) as registry:
        return registry.trials(made_once.search_id)


@pytest.fixture
def search(made_once) -> SearchRecord:
    with Registry.open(made_once.path) as registry:
        return registry.search(made_once.search_id)


def test_the_lowest_loss_is_first_and_a_trial_without_one_is_last(trials) -> None:
    assert [trial.number for trial in rank(trials)] == [5, 2, 4, 0, 3, 1, 7, 6]
    assert best_trial(trials).number == 5


def test_a_loss_of_nought_is_the_best_and_nan_is_none(trials) -> None:
    odd = [replace(trials[1], eval_loss=0.0), replace(trials[2], eval_loss=math.nan), trials[5]]
    assert [trial.number for trial in rank(odd)] == [1, 5, 2]
    assert best_trial([odd[1]]) is None


def test_where_more_is_better_the_order_and_the_gain_turn(trials) -> None:
    most = Objective(lower_is_better=False)
    assert [trial.number for trial in rank(trials, most)] == [7, 1, 3, 0, 4, 2, 5, 6]
    assert best_trial(trials, most).number == 7
    assert gain(2.5, 2.0, most) == 0.5
    assert leaderboard_rows(trials, most)[0]["gain"] > 0


def test_what_failed_is_never_the_best(trials) -> None:
    failed = replace(trials[6], eval_loss=0.1)
    assert best_trial([failed, trials[5]]).number == 5
    assert best_trial([failed]) is None
    assert leaderboard_rows([failed])[0]["rank"] is None


def test_the_objective_is_what_the_search_names(search, trials) -> None:
    assert objective_of(search) == EVAL_LOSS
    train = objective_of(replace(search, metric="train_loss", mode="max"))
    assert train.name == "train loss"
    assert train.of(trials[5]) == trials[5].train_loss
    assert not train.lower_is_better
    assert objective_of(replace(search, metric="accuracy")) is None


def test_rungs_are_those_of_the_search_or_what_its_trials_have_shown(search, trials) -> None:
    def asha(**training: object) -> SearchRecord:
        return replace(search, config={"scheduler": "asha", "training": training})

    metrics = {"t": [StepMetrics(trial_id="t", step=step, eval_loss=2.0) for step in (10, 20)]}
    assert rung_steps(asha(eval_steps=5, max_steps=60), trials, metrics) == (5, 15, 45)
    assert rung_steps(asha(eval_steps=None), trials, metrics) == (10, 30)
    assert rung_steps(asha(), [], {}) == ()
    assert rung_steps(replace(search, config={"scheduler": "median"}), trials, metrics) == ()
    at_45 = replace(trials[3], steps=45)
    assert [rung(trial, (5, 15, 45)) for trial in (trials[0], trials[1], at_45)] == ["3/3", "1/3", "2/3"]
    assert rung(trials[6], (5, 15, 45)) == "0/3"
    assert rung(trials[0], ()) is None


def test_parameters_are_told_apart_by_whether_they_differ(trials) -> None:
    told = parameters(trials)
    assert told.varying[:2] == ("r", "lora_alpha")
    assert told.constant == {"use_rslora": "no"}
    assert "r" in parameters(trials[:1]).varying  # of one trial nothing can be told
    assert parameters([]).varying == ()
    close = [replace(trials[0], params={"learning_rate": rate}) for rate in (1e-4, 1.0000001e-4)]
    assert parameters(close).varying == ("learning_rate",)


def test_gain_is_how_far_the_loss_lies_under_trial_nought(trials) -> None:
    prior = prior_loss(trials)
    assert gain(trials[0].eval_loss, prior) == 0
    assert gain(trials[5].eval_loss, prior) == pytest.approx(prior - trials[5].eval_loss)
    assert gain(trials[1].eval_loss, prior) < 0
    assert gain(None, prior) is None
    assert gain(2.0, None) is None


def test_rows_hold_what_the_table_shows(trials, made_once) -> None:
    rows = leaderboard_rows(trials)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, None]
    assert rows[0]["adapter"] == made_once.best
    assert rows[0]["state"] == ["completed"]
    assert rows[0]["target_modules"] == "all-linear"
    assert (rows[0]["lane"], rows[0]["slot"], rows[0]["rung"]) == ("lane-0", None, None)
    assert leaderboard_rows(trials, steps=(15, 45))[0]["rung"] == "2/2"
    assert rows[-1]["state"] == ["failed"]
    assert rows[-1]["message"].startswith("RuntimeError")
    assert {row["trial"] for row in rows if row["state"] == ["stopped early"]} == {1, 3, 7}
