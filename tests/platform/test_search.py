"""Searches from end to end: real Ray, a real base of two layers, everything in the registry afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankloom import Search
from rankloom.config import SearchConfig, TrainingConfig
from rankloom.result import SearchResult
from rankloom_registry import Event, Registry, TrialReported
from rankloom_spaces import load_space

KEEP_TOP = 2
PARAMETERS = ["r", "lora_alpha", "lora_dropout", "learning_rate", "target_modules"]

Run = Callable[..., SearchResult]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, rows_file: Path) -> Iterator[Run]:
    """Runs searches on one local Ray, which takes longer to start than a search to run."""
    from rankloom.cluster.driver import connected

    def run(*, watch: Any = None, **settings: Any) -> SearchResult:
        folder = tmp_path_factory.mktemp("search")
        defaults = {
            "space": "lora-small",
            "registry": folder / "registry.duckdb",
            "name": "negation",
            "keep_top": KEEP_TOP,
            "seed": 1,
            "training": {"max_steps": 9, "eval_steps": 1, "max_length": 64},
        }
        return Search(str(tiny_model), str(rows_file), **{**defaults, **settings}).run(watch)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        with connected(verbose=False):
            yield run


@pytest.fixture(scope="module")
def result(run: Run) -> SearchResult:
    return run(num_samples=6, slots_per_lane=1)  # with more, the order in which trials report is not given


@pytest.fixture
def registry(result: SearchResult) -> Registry:
    return Registry.open(result.registry)


def test_every_trial_is_recorded_as_it_ended(result: SearchResult, registry: Registry) -> None:
    search = registry.search(result.search_id)
    assert (result.status, search.status, search.name) == ("completed", "completed", "negation")
    assert (search.trials, search.finished_trials) == (6, 6)
    trials = registry.trials(result.search_id)
    assert [(trial.number, trial.trial_id) for trial in trials] == [(n, f"{result.search_id}-{n}") for n in range(6)]
    for trial in trials:
        steps = [step.step for step in registry.step_metrics(trial.trial_id)]
        assert steps == list(range(1, (trial.steps or 0) + 1))
        assert trial.attempts == 1 and trial.lane == "lane-0" and trial.ended_at is not None
        kinds = [event.kind for event in reversed(registry.events(trial.trial_id))]
        assert kinds == ["trial_started", *["trial_reported"] * len(steps), "trial_ended"]


def test_trial_0_is_the_prior(result: SearchResult) -> None:
    prior = load_space("lora-small").prior(64, "llama")
    assert result.prior is not None and result.prior.number == 0
    assert {name: result.prior.params[name] for name in PARAMETERS} == {name: prior[name] for name in PARAMETERS}
    assert result.prior.status == "completed"  # there was nothing to be worse than


def test_trials_that_fall_behind_are_stopped_early(result: SearchResult) -> None:
    full = [trial for trial in result.trials if trial.status == "completed"]
    stopped = [trial for trial in result.trials if trial.status == "stopped"]
    assert full and stopped and len(full) + len(stopped) == 6
    assert {trial.metrics["steps"] for trial in full} == {9}
    assert {trial.metrics["steps"] for trial in stopped} <= {1, 3}
    assert all(trial.adapter_id for trial in result.trials)


def test_the_best_trial_has_the_lowest_loss_and_its_gain_is_told(result: SearchResult, registry: Registry) -> None:
    best, prior = result.best, result.prior
    assert best is not None and prior is not None
    losses = [trial.metrics["eval_loss"] for trial in result.trials]
    assert best.metrics["eval_loss"] == min(losses)
    assert result.gain_over_prior == prior.metrics["eval_loss"] - min(losses)
    assert registry.adapters("status = 'available'", "eval_loss")[0].adapter_id == best.adapter_id


def test_the_dataframe_has_one_row_a_trial(result: SearchResult) -> None:
    frame = result.dataframe()
    assert list(frame["number"]) == list(range(6))
    columns = {"status", "trial_id", "adapter_id", *PARAMETERS, "seed", "eval_loss", "steps", "wall_s", "message"}
    assert columns <= set(frame.columns)
    assert frame["eval_loss"].notna().all() and (frame["peak_memory_bytes"] > 0).all()


def test_the_best_adapters_keep_their_files_and_nothing_else_is_left(result: SearchResult, registry: Registry) -> None:
    kept = registry.adapters("status = 'available'")
    losses = sorted(trial.metrics["eval_loss"] for trial in result.trials)
    assert sorted(adapter.eval_loss or 0.0 for adapter in kept) == losses[:KEEP_TOP]
    for adapter in kept:
        registry.verify(adapter)
    assert len(registry.adapters()) == 6
    assert {path.name for path in registry.artifacts.root.glob("sha256/*/*")} == {a.artifact_sha256 for a in kept}
    assert [path.name for path in registry.artifacts.root.iterdir()] == ["sha256"]
    assert list((result.run_folder / "adapters").iterdir()) == []


def test_a_search_is_not_overwritten(result: SearchResult, tiny_model: Path, rows_file: Path) -> None:
    again = Search(str(tiny_model), str(rows_file), registry=result.registry, name="negation")
    with pytest.raises(RuntimeError, match="'negation' already lies in .*: resume it with --resume"):
        again.run()


def test_the_same_seed_finds_the_same(run: Run, result: SearchResult) -> None:
    columns = ["number", "status", *PARAMETERS, "seed", "eval_loss", "train_loss", "steps", "train_tokens"]
    again = run(num_samples=4, slots_per_lane=1)
    assert again.search_id != result.search_id
    pd.testing.assert_frame_equal(again.dataframe()[columns], result.dataframe()[columns].head(4))


def test_a_trial_that_fails_fails_alone(run: Run) -> None:
    def space(trial: Any) -> dict[str, Any]:
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True)
        broken: list[dict[str, Any]] = [
            {},
            {"target_modules": "no_such_layer"},  # refused
            {"learning_rate": 1e30},  # diverges
            {"lora_dropout": "half"},  # raises inside a library
        ]
        return {"learning_rate": rate, "r": 4, **(broken[trial.number] if trial.number < len(broken) else {})}

    result = run(num_samples=5, space=space, scheduler=None)
    assert result.status == "completed"
    assert [trial.status for trial in result.trials] == ["completed", "failed", "failed", "failed", "completed"]
    messages = [trial.message for trial in result.trials]
    assert "no_such_layer" in messages[1]
    assert "lower learning_rate" in messages[2]
    assert messages[3].startswith("TypeError") or messages[3].startswith("ValueError")
    assert [bool(trial.adapter_id) for trial in result.trials] == [True, False, False, False, True]
    assert result.best is not None and result.best.number in (0, 4)
    assert Registry.open(result.registry).search(result.search_id).finished_trials == 5


class Assassin:
    """A watcher that kills the lane's process in mid-search, once: after trial 1's third evaluation."""

    def __init__(self) -> None:
        self.killed: int | None = None
        self.states: set[str] = set()

    def say(self, message: str) -> None:
        pass

    def begin(self, name: str, config: SearchConfig, training: TrainingConfig) -> None:
        pass

    def update(self, events: Sequence[Event], lanes: Sequence[Any], progress: Sequence[Any]) -> None:
        self.states |= {lane.state for lane in lanes}
        reports = [event for event in events if isinstance(event, TrialReported) and event.step >= 12]
        if self.killed is None and any(event.trial_id.endswith("-1") for event in reports):
            (self.killed,) = (lane.pid for lane in lanes)
            assert self.killed is not None
            os.kill(self.killed, signal.SIGKILL)


def test_a_lane_that_dies_loses_nothing_but_time(run: Run) -> None:
    settings: dict[str, Any] = {
        "num_samples": 5,
        "scheduler": None,
        "sampler": "random",
        "slots_per_lane": 3,
        "keep_top": 5,
        "training": {"max_steps": 40, "eval_steps": 4, "max_length": 64},
        "quantization": {"bnb_4bit_compute_dtype": "float32"},
    }
    watch = Assassin()
    killed, undisturbed = run(**settings, watch=watch), run(**settings)
    assert watch.killed is not None and watch.states >= {"starting", "loading", "ready"}
    registry, reference = Registry.open(killed.registry), Registry.open(undisturbed.registry)
    trials = registry.trials(killed.search_id)
    assert [(trial.status, trial.steps) for trial in trials] == [("completed", 40)] * 5
    attempts = [trial.attempts for trial in trials]
    assert max(attempts) == 2 and attempts[-1] == 1  # those that were in hand went on, the others knew nothing of it
    for trial, other in zip(trials, reference.trials(undisturbed.search_id), strict=True):
        assert [step.step for step in registry.step_metrics(trial.trial_id)] == list(range(4, 41, 4))
        assert trial.params == other.params
        curves = [[s.eval_loss for s in r.step_metrics(t.trial_id)] for r, t in ((registry, trial), (reference, other))]
        assert curves[0] == curves[1]
    # By content: every final adapter has the very bits of an undisturbed one.
    assert artifacts(registry) == artifacts(reference) and len(artifacts(registry)) == 5
    assert not (killed.run_folder / "checkpoints").exists()
    assert [path.name for path in registry.artifacts.root.iterdir()] == ["sha256"]


def artifacts(registry: Registry) -> set[str]:
    return {adapter.artifact_sha256 for adapter in registry.adapters("status = 'available'")}
