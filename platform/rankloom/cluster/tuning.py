"""Ray Tune as a search uses it: it proposes, compares and stops, and trains nothing."""

from __future__ import annotations

import math
import shutil
from typing import Any

from ray import tune
from ray.tune.schedulers import (
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from rankloom.cluster.halving import SuccessiveHalving
from rankloom.cluster.job import STOP, Job
from rankloom.cluster.proposing import Population, Proposals, Room
from rankloom.cluster.searcher import OptunaSearcher, build_sampler
from rankloom.cluster.trainable import CPU_SHARE, LaneTrial
from rankloom.config import REDUCTION_FACTOR, rungs
from rankloom.errors import ConfigError

PAUSING = (HyperBandScheduler, PopulationBasedTraining)


def build_tuner(job: Job, broker: Any, slots: int, room: Room) -> tune.Tuner:
    """Build the tuner of a search.

    Args:
        job: The search.
        broker: Handle of its broker.
        slots: Trials that all lanes train at once.
        room: How many trials it proposes.
    """
    trainable = tune.with_resources(
        tune.with_parameters(
            LaneTrial,
            broker=broker,
            search_id=job.run.search_id,
            resolve=job.resolve,
            seed=job.config.seed,
            checkpoints=job.run.checkpoints,
        ),
        {"cpu": CPU_SHARE},
    )
    # Nothing that Tune keeps is read again: a search is resumed from the registry and the study's journal.
    shutil.rmtree(job.run.tune, ignore_errors=True)
    max_steps, eval_steps = job.training.max_steps, job.training.eval_steps
    assert max_steps is not None and eval_steps is not None
    # A scheduler that pauses trials compares more of them than there are slots, and from the beginning; they wait in
    # the broker. With no limit at all Tune would add one whenever an actor has started.
    at_once = job.config.max_concurrent_trials or (
        job.config.num_samples if isinstance(job.config.scheduler, PAUSING) else slots
    )
    searcher = OptunaSearcher(
        space=job.space,
        metric=job.config.metric,
        mode=job.config.mode,
        points=job.points,
        sampler=build_sampler(job.config.sampler, job.config.seed, drawn=len(job.past)),
        journal=job.run.study,
    )
    population = isinstance(job.config.scheduler, PopulationBasedTraining)
    proposals: Any = Population(searcher, at_once=at_once) if population else Proposals(searcher, room, at_once=at_once)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=job.config.metric,
            mode=job.config.mode,
            search_alg=proposals,
            scheduler=build_scheduler(
                job.config.scheduler, grace_steps=min(eval_steps, max_steps), max_steps=max_steps
            ),
            num_samples=job.config.num_samples,
            time_budget_s=job.config.time_budget_s,
            reuse_actors=True,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=tune.RunConfig(
            name=job.run.tune.name,
            storage_path=str(job.run.tune.parent),
            stop=_StopFlag(),
            callbacks=[_Farewell(broker), _LastCall(proposals, room)],
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=1 if job.verbose else 0,
        ),
    )


def _trial_folder(trial: Any) -> str:
    return str(trial.trial_id)


def build_scheduler(scheduler: Any, *, grace_steps: int, max_steps: int) -> TrialScheduler:
    """Build a scheduler for Ray Tune from a name ('asha', 'median', 'fifo', None) or pass an object on.

    Args:
        scheduler: Name, object or None.
        grace_steps: Steps that every trial gets: the first rung.
        max_steps: Steps of a full trial.

    Raises:
        ConfigError: The name is unknown.
    """
    if isinstance(scheduler, TrialScheduler):
        return scheduler
    if scheduler == "asha":
        return SuccessiveHalving(rungs(grace_steps, max_steps), reduction_factor=REDUCTION_FACTOR)
    if scheduler == "median":
        # Slots are shared here, not by Tune: left to itself, it pauses a trial for one that waits. A slice that is not
        # infinite would still be exceeded once, as it counts from minus infinity.
        return MedianStoppingRule(
            time_attr="steps",
            grace_period=grace_steps,
            min_samples_required=3,
            min_time_slice=math.inf,  # type: ignore[arg-type]
        )
    if scheduler in ("fifo", None):
        return FIFOScheduler()
    raise ConfigError(f"scheduler must be 'asha', 'median', 'fifo', None or a Ray Tune scheduler, got {scheduler!r}")


class _StopFlag(tune.Stopper):
    """Ends Tune's loop when the follower or Ctrl-C says so."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return STOP.is_set()


class _LastCall(tune.Callback):
    """Closes the room for trials in the step after which Tune finds that all have ended, and ends its loop."""

    def __init__(self, proposals: Any, room: Room) -> None:
        self._proposals = proposals
        self._room = room

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._room.close_if(lambda: self._proposals.is_finished() and all(trial.is_finished() for trial in trials))


class _Farewell(tune.Callback):
    """Tells the broker of trials that Tune is done with; their actors see a stop, a pause and a copy alike."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._broker.dismiss.remote(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._broker.dismiss.remote(trial.trial_id)
