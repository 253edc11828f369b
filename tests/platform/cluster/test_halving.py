from __future__ import annotations

from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from rankloom.cluster.flight import RUNG
from rankloom.cluster.halving import SuccessiveHalving


def decided(values: list[float], *, mode: str = "min", together: bool = True, steps: int = 3) -> list[bool]:
    """Whether each trial goes on, for values that are known together, or one after the other."""
    scheduler = SuccessiveHalving((3, 9), reduction_factor=3)
    assert scheduler.set_search_properties("eval_loss", mode)
    results = [
        {"steps": steps, "eval_loss": value, RUNG: values if together else values[: number + 1]}
        for number, value in enumerate(values)
    ]
    return [scheduler.on_trial_result(None, None, result) == TrialScheduler.CONTINUE for result in results]


def test_of_trials_that_come_together_the_best_third_goes_on_whatever_their_order() -> None:
    assert decided([5.0, 4.0, 3.0, 2.0, 1.0, 6.0]) == [False, False, False, True, True, False]
    assert decided([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == [True, True, False, False, False, False]


def test_one_after_the_other_each_is_held_against_those_before_it() -> None:
    assert decided([3.0, 2.0, 4.0, 5.0, 6.0, 2.5], together=False) == [True, True, False, False, False, True]


def test_the_first_of_few_goes_on() -> None:
    assert decided([2.0]) == [True]
    assert decided([2.0, 1.0]) == [False, True]


def test_equals_are_treated_alike() -> None:
    assert decided([1.0, 1.0, 2.0]) == [True, True, False]


def test_a_metric_can_be_better_when_it_is_higher() -> None:
    assert decided([1.0, 2.0, 3.0], mode="max") == [False, False, True]


@pytest.mark.parametrize("result", [{"steps": 4, "eval_loss": 9.0, RUNG: [1.0, 2.0, 9.0]}, {"steps": 3, RUNG: [1.0]}])
def test_nothing_is_decided_between_rungs_or_without_a_value(result: dict[str, Any]) -> None:
    scheduler = SuccessiveHalving((3,), reduction_factor=3)
    scheduler.set_search_properties("eval_loss", "min")
    assert scheduler.on_trial_result(None, None, result) == TrialScheduler.CONTINUE
