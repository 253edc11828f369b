"""The same grid searched in several ways, each from nothing: a process of its own, its own Ray, its own data."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _task import Task
from _world import grid


def measured(mode: str, task: Task, seed: int) -> dict[str, Any]:
    """Run a search in a process of its own; the clock runs from before the process starts to after it has ended.

    Whatever a user waits for is in it, alike for all: imports, Ray's start and end, the rows' tokens, loading the base.
    """
    began = time.monotonic()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(SEARCHES[mode], task, seed).result()
    return {"mode": mode, "seed": seed, "wall_s": time.monotonic() - began, **found}


def search_sequentially(task: Task, seed: int) -> dict[str, Any]:
    """Train the whole grid, one TRL trainer after the other on one resident base; no Ray."""
    from _engines import build, quiet, require_completed, specs_of
    from datasets import load_from_disk

    from rankloom.hush import hush
    from rankloom.training.exchange import LocalExchange
    from rankloom.training.resident import load_resident_base

    hush()
    specs = specs_of(grid(task.axes), seed)
    exchange = LocalExchange(specs)
    # Nobody decides anything in mid-trial, so each is evaluated once, at its end.
    training = task.training.model_copy(update={"eval_steps": task.training.max_steps})
    with tempfile.TemporaryDirectory(prefix="rankloom-benchmark-") as folder:
        _prepare(task, seed, Path(folder))
        engine = build(
            "sequential",
            base=load_resident_base(task.model, task.quantization, training),
            train=load_from_disk(f"{folder}/train"),
            held_out=load_from_disk(f"{folder}/eval"),
            training=training,
            adapters=Path(folder) / "adapters",
            slots=1,
        )
        with quiet():
            engine.run(exchange)
    require_completed(exchange)
    return {"trials": [_row(spec.params, exchange.outcomes[spec.trial_id].metrics, "completed") for spec in specs]}


def search_with_tune(task: Task, seed: int, *, reuse_actors: bool = False) -> dict[str, Any]:
    """Let Ray Tune train the grid, each trial with TRL in an actor that loads the base."""
    import ray
    from _tune_trial import TrlTrial
    from ray import tune

    from rankloom.cluster.driver import connected

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rankloom-benchmark-") as folder, connected(verbose=False):
        ray_start_s = time.monotonic() - began
        _prepare(task, seed, Path(folder))
        gpus = ray.cluster_resources().get("GPU", 0)
        share: dict[str, float] = {"cpu": max(1, (os.cpu_count() or 1) // task.concurrent)}
        if gpus:
            share["gpu"] = 1 / task.concurrent
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(TrlTrial, task=task, seed=seed, data=Path(folder)), share),
            param_space={"number": tune.grid_search(list(range(len(grid(task.axes)))))},
            tune_config=tune.TuneConfig(
                metric="eval_loss", mode="min", reuse_actors=reuse_actors, max_concurrent_trials=task.concurrent
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()
        if results.errors:
            raise RuntimeError(f"Ray Tune's trials failed: {results.errors[0]}; nothing was measured")
        ended = [results[index].metrics or {} for index in range(len(results))]
        found = {metrics["config"]["number"]: metrics for metrics in ended}
    trials = [_row(params, found[number], "completed") for number, params in enumerate(grid(task.axes))]
    return {"ray_start_s": ray_start_s, "trials": trials}


def search_reusing_actors(task: Task, seed: int) -> dict[str, Any]:
    """The same, with the base staying in the actor from trial to trial."""
    return search_with_tune(task, seed, reuse_actors=True)


def search_packed(task: Task, seed: int) -> dict[str, Any]:
    """Our search over the same grid; a function as the space, so that it has no prior point beside the grid."""
    import optuna

    from rankloom import Search

    with tempfile.TemporaryDirectory(prefix="rankloom-benchmark-") as folder:
        result = Search(
            str(task.model),
            str(task.dataset),
            name="grid",
            registry=Path(folder) / "registry.duckdb",
            space=GridSpace(task.axes),
            sampler=optuna.samplers.GridSampler(task.axes, seed=seed),
            scheduler=task.scheduler,
            engine="packed",
            slots_per_lane=task.slots,
            num_samples=len(grid(task.axes)),
            seed=seed,
            training=task.training,
            quantization=task.quantization,
        ).run()
    failed = [trial.message for trial in result.trials if trial.status not in ("completed", "stopped")]
    if failed or len(result.trials) != len(grid(task.axes)):
        raise RuntimeError(
            f"{len(result.trials)} trials were recorded, and some failed: {failed}; nothing was measured"
        )
    by_point = {_point(task, trial.params): trial for trial in result.trials}
    trials = [by_point[_point(task, params)] for params in grid(task.axes)]
    return {"trials": [_row(trial.params, trial.metrics, trial.status) for trial in trials]}


class GridSpace:
    """The grid's axes as a function of an Optuna trial."""

    def __init__(self, axes: dict[str, list[Any]]) -> None:
        self._axes = axes

    def __call__(self, trial: Any) -> None:
        for name, values in self._axes.items():
            trial.suggest_categorical(name, values)


SEARCHES: dict[str, Callable[[Task, int], dict[str, Any]]] = {
    "sequential": search_sequentially,
    "tune": search_with_tune,
    "tune-reuse": search_reusing_actors,
    "rankloom": search_packed,
}


def _prepare(task: Task, seed: int, folder: Path) -> None:
    """Make the rows that our search makes of the same file."""
    from rankloom.config import SearchConfig
    from rankloom.data import prepare_data
    from rankloom.models import load_tokenizer

    prepare_data(
        dataset=task.dataset,
        eval_dataset=None,
        eval_fraction=SearchConfig.model_fields["eval_fraction"].default,
        max_eval_samples=task.training.max_eval_samples,
        seed=seed,
        tokenizer=load_tokenizer(task.model),
        max_length=task.training.max_length,
        completion_only_loss=task.training.completion_only_loss,
        folder=folder,
    )


def _point(task: Task, params: Any) -> tuple[Any, ...]:
    return tuple(params[axis] for axis in task.axes)


def _row(params: Any, metrics: Any, status: str) -> dict[str, Any]:
    return {
        "r": params["r"],
        "learning_rate": params["learning_rate"],
        "status": status,
        "steps": metrics["steps"],
        "eval_loss": metrics["eval_loss"],
    }
