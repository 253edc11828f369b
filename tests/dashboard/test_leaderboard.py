from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rankloom_dashboard.leaderboard import adapter_rows, best_trial, gain, leaderboard_rows, prior_loss, rank
from rankloom_registry import Registry, TrialRecord


@pytest.fixture
def trials(made_once) -> list[TrialRecord]:
    with Registry.open(made_once.path) as registry:
        return registry.trials(made_once.search_id)


def test_the_lowest_loss_is_first_and_a_trial_without_one_is_last(trials) -> None:
    assert [trial.number for trial in rank(trials)] == [5, 2, 4, 0, 3, 1, 7, 6]
    assert best_trial(trials).number == 5


def test_a_loss_of_nought_is_the_best_and_nan_is_none(trials) -> None:
    odd = [replace(trials[1], eval_loss=0.0), replace(trials[2], eval_loss=math.nan), trials[5]]
    assert [trial.number for trial in rank(odd)] == [1, 5, 2]
    assert best_trial([odd[1]]) is None


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
    assert rows[-1]["state"] == ["failed"]
    assert rows[-1]["message"].startswith("RuntimeError")
    assert {row["trial"] for row in rows if row["state"] == ["stopped early"]} == {1, 3, 7}


def test_adapter_rows_say_whose_files_are_kept(made_once) -> None:
    with Registry.open(made_once.path) as registry:
        rows = {row["adapter"]: row for row in adapter_rows(registry.adapters())}
    assert rows[made_once.discarded]["files"] == ["discarded"]
    assert rows[made_once.best]["files"] == ["available"]
    assert rows[made_once.best]["aliases"] == ["champion"]
