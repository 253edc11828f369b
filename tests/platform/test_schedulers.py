"""Searches from end to end under schedulers that stop, pause, and copy trials, with more trials than slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, PopulationBasedTraining

from rankloom import Search
from rankloom.cluster.lane import read_event_logs
from rankloom.errors import ConfigError
from rankloom.result import SearchResult
from rankloom_registry import Registry, TrialRecord, TrialReported

pytestmark = pytest.mark.timeout(120)

STEPS = 9
STATES = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
RATES = [1e-2, 5e-3, 1e-9, 2e-9]  # two that learn, two that hardly move

Run = Callable[..., SearchResult]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, rows_file: Path) -> Iterator[Run]:
    """Runs searches of two slots on one local Ray."""
    from rankloom.cluster.driver import connected

    def run(**settings: Any) -> SearchResult:
        folder = tmp_path_factory.mktemp("search")
        defaults = {
            "space": "lora-small",
            "registry": folder / "registry.duckdb",
            "name": "negation",
            "seed": 1,
            "slots_per_lane": 2,
            "num_samples": 4,
            "training": {"max_steps": STEPS, "eval_steps": 1, "max_length": 64},
        }
        return Search(str(tiny_model), str(rows_file), **{**defaults, **settings}).run()

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        with connected(verbose=False):
            yield run


def rates(trial: optuna.Trial) -> dict[str, Any]:
    """Space whose first trials have the rates of `RATES`, whatever is sampled."""
    trial.suggest_float("learning_rate", 1e-9, 1e-2, log=True)
    return {"learning_rate": RATES[trial.number % len(RATES)], "r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


def checked(result: SearchResult) -> list[TrialRecord]:
    """Check that every trial ended, and that registry and study agree on how; returns the trials."""
    registry = Registry.open(result.registry)
    trials = registry.trials(result.search_id)
    assert result.status == registry.search(result.search_id).status == "completed"
    assert [trial.trial_id for trial in trials] == [f"{result.search_id}-{number}" for number in range(len(trials))]
    assert {trial.status for trial in trials} <= STATES.keys(), [trial.message for trial in trials]
    for trial in trials:
        assert trial.ended_at is not None and trial.eval_loss is not None
        assert (trial.steps == STEPS) if trial.status == "completed" else (0 < (trial.steps or 0) <= STEPS)
        kinds = [event.kind for event in registry.events(trial.trial_id)]
        assert kinds.count("trial_ended") == 1 and kinds.count("trial_started") == trial.attempts
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(result.run_folder / "study.jsonl"))
    )
    (study,) = storage.get_all_studies()
    told = storage.get_all_trials(study._study_id)
    assert [trial.state for trial in told] == [STATES[trial.status] for trial in trials]
    assert [trial.value for trial in told] == [trial.eval_loss for trial in trials]
    assert not (result.run_folder / "checkpoints").exists() and not list((result.run_folder / "adapters").iterdir())
    return trials


@pytest.mark.parametrize(
    "scheduler",
    ["asha", ASHAScheduler(time_attr="steps", max_t=STEPS, grace_period=1), "median", None],
    ids=["asha", "ASHAScheduler", "median", "None"],  # an object's own text differs from process to process
)
def test_trials_are_stopped_or_completed(run: Run, scheduler: str | ASHAScheduler | None) -> None:
    trials = checked(run(scheduler=scheduler))
    assert len(trials) == 4
    assert {trial.attempts for trial in trials} == {1}  # nobody paused
    if scheduler is None:
        assert {trial.status for trial in trials} == {"completed"}
    if scheduler == "asha":
        assert "stopped" in {trial.status for trial in trials}


def test_hyperband_pauses_trials_and_goes_on_with_the_best(run: Run) -> None:
    scheduler = HyperBandScheduler(time_attr="steps", max_t=STEPS, reduction_factor=3)
    result = run(scheduler=scheduler, num_samples=6)
    trials = checked(result)
    assert len(trials) == 6
    assert "completed" in {trial.status for trial in trials} and "stopped" in {trial.status for trial in trials}
    assert max(trial.attempts for trial in trials) > 1
    # Each goes on behind the evaluation at which it was paused, and does not repeat it.
    reports = [(e.trial_id, e.step) for e in read_event_logs(result.run_folder) if isinstance(e, TrialReported)]
    assert len(reports) == len(set(reports))


def test_a_scheduler_that_pauses_is_refused_where_nothing_can_be_paused(run: Run) -> None:
    scheduler = HyperBandScheduler(time_attr="steps", max_t=STEPS)
    with pytest.raises(ConfigError, match="HyperBandScheduler pauses trials, which engine 'trl' cannot: set engine"):
        run(scheduler=scheduler, engine="trl", slots_per_lane=1)


def test_population_based_training_goes_on_from_better_trials(run: Run) -> None:
    scheduler = PopulationBasedTraining(
        time_attr="steps",
        perturbation_interval=3,
        hyperparam_mutations={"params": {"learning_rate": tune.loguniform(1e-4, 1e-2)}},
    )
    trials = checked(run(scheduler=scheduler, space=rates, num_samples=4))
    assert len(trials) == 4 and {trial.status for trial in trials} == {"completed"}
    copied = [t for t in trials if t.params["learning_rate"] != RATES[t.number]]
    assert copied and all(trial.attempts > 1 for trial in copied)
