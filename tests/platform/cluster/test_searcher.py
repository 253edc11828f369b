"""What the study is told, and what a resumed search finds in its journal."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from rankloom.cluster.proposing import Population
from rankloom.cluster.searcher import OptunaSearcher, build_sampler
from rankloom.errors import ConfigError
from rankloom_spaces import load_space

SPACE = load_space("lora-small")
PRIOR = SPACE.prior(64, "llama")


def searcher(folder: Path, *, seed: int = 0, drawn: int = 0, space: Any = None, sampler: Any = "random") -> Any:
    return OptunaSearcher(
        space=space or SPACE.distributions(),
        metric="eval_loss",
        mode="min",
        points=[] if callable(space) else [PRIOR],
        sampler=build_sampler(sampler, seed, drawn=drawn),
        journal=folder / "study.jsonl",
    )


def states(searcher: Any) -> list[TrialState]:
    return [trial.state for trial in searcher._ot_study.trials]


def test_points_come_first_and_every_suggestion_has_a_number(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    suggestions = [search.suggest(trial) for trial in ("x", "y", "z")]
    assert suggestions[0] == {"number": 0, "params": PRIOR}
    assert [suggestion["number"] for suggestion in suggestions] == [0, 1, 2]
    for suggestion in suggestions:
        assert SPACE.resolve(suggestion["params"])["r"] in (4, 8, 16)


def test_the_same_seed_draws_the_same_trials(tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        (tmp_path / name).mkdir()
        search = searcher(tmp_path / name, seed=seed, sampler="tpe")
        drawn.append([search.suggest(str(number)) for number in range(4)])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("result", "error", "state", "value"),
    [
        ({"eval_loss": 0.5, "steps": 9, "outcome": "completed"}, False, TrialState.COMPLETE, 0.5),
        ({"eval_loss": 0.7, "steps": 3}, False, TrialState.PRUNED, 0.7),  # by a scheduler, at a report
        ({"eval_loss": 0.7, "steps": 3, "outcome": "stopped"}, False, TrialState.PRUNED, 0.7),
        ({"outcome": "failed"}, False, TrialState.FAIL, None),
        ({"eval_loss": math.nan, "steps": 3, "outcome": "completed"}, False, TrialState.FAIL, None),
        ({"eval_loss": math.inf, "steps": 3}, False, TrialState.FAIL, None),
        ({"eval_loss": 0.7, "steps": 3}, True, TrialState.FAIL, None),
        (None, True, TrialState.FAIL, None),
    ],
)
def test_the_study_is_told_how_a_trial_ended(
    tmp_path: Path, result: dict[str, Any] | None, error: bool, state: TrialState, value: float | None
) -> None:
    search = searcher(tmp_path)
    search.suggest("x")
    search.on_trial_result("x", {"eval_loss": math.nan, "steps": 1})
    search.on_trial_complete("x", result, error)
    (trial,) = search._ot_study.trials
    assert trial.state == state
    assert trial.value == value
    if state == TrialState.PRUNED and result is not None:
        assert trial.intermediate_values == {result["steps"]: value}


def test_a_trial_is_told_once(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("x")
    search.on_trial_complete("x", {"eval_loss": 0.5, "steps": 9, "outcome": "completed"})
    search.on_trial_complete("x", {"eval_loss": 0.1, "steps": 9, "outcome": "completed"})
    search.on_trial_complete("unknown", {"eval_loss": 0.1, "steps": 9, "outcome": "completed"})
    assert [trial.value for trial in search._ot_study.trials] == [0.5]


def test_a_trial_that_is_stopped_while_it_is_paused_is_pruned_with_its_last_value(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for trial in ("x", "y"):
        search.suggest(trial)
    for step, loss in ((1, 0.9), (3, 0.7)):
        search.on_trial_result("x", {"eval_loss": loss, "steps": step})
    search.on_trial_complete("x", None)
    search.on_trial_complete("y", None)  # before its first result
    pruned, failed = search._ot_study.trials
    assert (pruned.state, pruned.value, pruned.intermediate_values) == (TrialState.PRUNED, 0.7, {3: 0.7})
    assert (failed.state, failed.value) == (TrialState.FAIL, None)


def test_a_population_is_the_searchers_and_not_of_the_kind_that_tune_refuses(tmp_path: Path) -> None:
    population = copy.copy(Population(searcher(tmp_path), at_once=4))
    assert not isinstance(population, SearchGenerator)
    assert population.metric == "eval_loss" and population.total_samples == 0
    assert population.searcher.max_concurrent == 4
    assert [population.searcher.suggest(trial)["number"] for trial in ("x", "y")] == [0, 1]


def test_a_trial_that_was_cut_short_stays_open_and_ends_the_suggestions(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("x")
    search.on_trial_complete("x", {"outcome": "interrupted", "done": True})
    assert states(search) == [TrialState.RUNNING]
    assert search.suggest("y") == Searcher.FINISHED


def test_a_resumed_search_begins_with_the_trials_of_its_journal(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    before = [first.suggest(trial) for trial in ("x", "y")]
    first.on_trial_complete("x", {"eval_loss": 0.5, "steps": 9, "outcome": "completed"})

    again = searcher(tmp_path, drawn=2)
    assert [again.suggest(trial) for trial in ("p", "q")] == before
    new = again.suggest("r")
    assert new["number"] == 2 and new["params"] != before[1]["params"]
    # The first is replayed from the registry, the second trained again.
    again.on_trial_complete("p", {"eval_loss": 0.9, "steps": 3})
    again.on_trial_complete("q", {"eval_loss": 0.4, "steps": 9, "outcome": "completed"})
    assert [(trial.state, trial.value) for trial in again._ot_study.trials[:2]] == [
        (TrialState.COMPLETE, 0.5),
        (TrialState.COMPLETE, 0.4),
    ]


def test_a_resumed_search_draws_new_trials_not_the_same_once_more(tmp_path: Path) -> None:
    for sampler in ("random", "tpe", optuna.samplers.RandomSampler(seed=0)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        first = searcher(folder, sampler=sampler)
        before = [first.suggest(str(number))["params"] for number in range(4)]
        if not isinstance(sampler, str):
            sampler = optuna.samplers.RandomSampler(seed=0)  # as it was pickled, before its first draw
        again = searcher(folder, drawn=4, sampler=sampler)
        after = [again.suggest(str(number))["params"] for number in range(8)]
        assert after[:4] == before
        assert not [params for params in after[4:] if params in before]


def test_a_trial_that_was_drawn_in_part_keeps_what_was_drawn(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    trial = first._ot_study.ask()  # the driver dies after the first parameter
    name, distribution = next(iter(SPACE.distributions().items()))
    trial._suggest(name, distribution)
    assert searcher(tmp_path).suggest("x") == {"number": 0, "params": PRIOR}


def test_a_function_of_a_trial_is_asked_again_and_answers_the_same(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        return {"r": 8}

    first = searcher(tmp_path, space=space)
    before = first.suggest("x")
    assert before["params"].keys() == {"learning_rate", "r"}
    first.on_trial_complete("x", {"eval_loss": 0.5, "steps": 9, "outcome": "completed"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert searcher(tmp_path, space=space, drawn=1).suggest("y") == before


def test_nothing_but_the_journal_is_written(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("x")
    search.save(str(tmp_path / "state.pkl"))
    assert [file.name for file in tmp_path.iterdir()] == ["study.jsonl"]


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tpe', 'random' or an optuna sampler, got 'cma'"):
        build_sampler("cma", 0)


def test_a_grid_ends_when_it_is_done(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> None:
        trial.suggest_categorical("r", [4, 8])

    grid = searcher(tmp_path, space=space, sampler=optuna.samplers.GridSampler({"r": [4, 8]}, seed=0))
    ranks = {grid.suggest(name)["params"]["r"] for name in ("x", "y")}
    assert ranks == {4, 8}
    for name in ("x", "y"):
        grid.on_trial_complete(name, {"eval_loss": 1.0, "steps": 9, "outcome": "completed"})
    assert grid.suggest("z") == Searcher.FINISHED
    assert [trial.state for trial in grid._ot_study.trials] == [TrialState.COMPLETE] * 2
