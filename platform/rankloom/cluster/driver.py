"""The driver of a search: starts the broker and the lanes, lets Ray Tune decide, and follows what happens."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read by Ray when it is imported or its processes start.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # its kill crashes Tuner.fit in spite of max_failures
os.environ.setdefault("RAY_worker_niceness", "0")  # the lane is what the machine is for
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the registry records; no CSV or TensorBoard files
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a failed trial has no metric, on purpose
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is handled here

import optuna
import ray
from ray import tune
from ray.tune.schedulers import (
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from rankloom.cluster.broker import Broker
from rankloom.cluster.flight import LaneState, Past, Progress
from rankloom.cluster.halving import SuccessiveHalving
from rankloom.cluster.lane import LaneConfig, run_lane
from rankloom.cluster.owner import owned
from rankloom.cluster.searcher import OptunaSearcher, Population, build_sampler
from rankloom.cluster.trainable import CPU_SHARE, LaneTrial
from rankloom.config import REDUCTION_FACTOR, SearchConfig, TrainingConfig, rungs
from rankloom.errors import ConfigError, SearchError
from rankloom.runs import Run
from rankloom_registry import Event

DRAIN_S = 600.0
PAUSING = (HyperBandScheduler, PopulationBasedTraining)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the driver needs of a search.

    Attributes:
        run: Its run folder.
        config: Its configuration.
        training: Settings that the trials share, with `max_steps` and `eval_steps` set.
        space: Optuna distributions by name, or a function of an Optuna trial.
        resolve: Turns sampled parameters into a trial's configuration.
        points: Points to try first.
        largest: Configuration of the largest adapter that is to be expected.
        past: What an earlier run saw of its trials, by trial_id.
        verbose: Whether Ray may talk.
    """

    run: Run
    config: SearchConfig
    training: TrainingConfig
    space: Any
    resolve: Callable[[dict[str, Any]], dict[str, Any]]
    points: list[dict[str, Any]]
    largest: dict[str, Any]
    past: Mapping[str, Past] = field(default_factory=dict)
    verbose: bool = False


Watch = Callable[[Sequence[Event], Sequence[LaneState], Sequence[Progress]], None]
_STOP = threading.Event()  # one search a process; a module's own, because Tune pickles the stopper


class _StopFlag(tune.Stopper):
    """Ends Tune's loop when the follower or Ctrl-C says so."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return _STOP.is_set()


def run_job(job: Job, *, record: Callable[[Sequence[Event]], None], watch: Watch, registry: Path | None = None) -> None:
    """Run a search to its end.

    Args:
        job: The search.
        record: Called with each batch of events, in order; what it raises ends the search.
        watch: Called at least every second with new events, lanes and progress.
        registry: The registry file that `record` writes to; it has an owner while the search runs.

    Raises:
        ConfigError: The scheduler asks for what the engine cannot do.
        SearchError: No lane could run, or a lane found its base changed.
        KeyboardInterrupt: Ctrl-C; what was recorded stays, and the search can be resumed.
    """
    _STOP.clear()
    if job.config.engine == "trl" and isinstance(job.config.scheduler, PAUSING):
        name = type(job.config.scheduler).__name__
        raise ConfigError(f"{name} pauses trials, which engine 'trl' cannot: set engine to 'packed', or leave it out")
    if not job.verbose:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    with connected(verbose=job.verbose) as local, owned(registry):
        lanes = lane_configs(job, local=local)
        broker: Any = ray.remote(num_cpus=0, max_restarts=0)(Broker).remote(
            [lane.name for lane in lanes],
            dict(job.past),
            metric=job.config.metric,
            takes_turns=isinstance(job.config.scheduler, PopulationBasedTraining),
        )
        refs = [run_lane.remote(lane, broker) for lane in lanes]
        follower = _Follower(broker, record, watch)
        follower.start()
        try:
            with _interruptible(broker):
                # Tune is to propose as many trials at once as there are slots, and a lane measures how many it has.
                if slots := ray.get(broker.planned.remote()):
                    _tuner(job, broker, slots).fit()
                if not _STOP.is_set():
                    ray.get(broker.drained.remote(DRAIN_S))
            follower.finish()
            ray.get(broker.close.remote())
            if _STOP.is_set() and follower.error is None:
                raise KeyboardInterrupt
            if follower.error is not None:
                raise follower.error
            # Each lane now proves that its base was left as it was; a search that cannot say so is not completed.
            _, pending = ray.wait(refs, num_returns=len(refs), timeout=DRAIN_S)
            if pending:
                raise SearchError(f"{len(pending)} lanes did not end within {DRAIN_S:.0f} s of the last trial")
            _raise_for_lanes(ray.get(broker.state.remote())[0])
            shutil.rmtree(job.run.checkpoints, ignore_errors=True)  # every trial has ended
        finally:
            follower.finish()
            for ref in refs:
                ray.cancel(ref, force=True)
            ray.kill(broker)


@contextlib.contextmanager
def connected(*, verbose: bool) -> Iterator[bool]:
    """Connect to the cluster of `RAY_ADDRESS`, or start a local one for a while; yields whether it is local."""
    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": "INFO" if verbose else "ERROR"}
    if not verbose:
        for name in ("ray", "ray.tune", "ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    if address is None:
        # One CPU more than there are: lanes take all real ones, the feather-light Tune actors share the other.
        options["num_cpus"] = (os.cpu_count() or 1) + 1
        # Ours shows what a search does, and also when it is over; Ray's would take seconds of a small machine to start.
        options["include_dashboard"] = False
    # Ray prints news of its processes on stdout, whatever it is told; that belongs to results.
    with contextlib.redirect_stdout(sys.stderr):
        ray.init(address=address, **options)
        try:
            yield address is None
        finally:
            ray.shutdown()


def lane_configs(job: Job, *, local: bool) -> list[LaneConfig]:
    """Return one lane per GPU of the cluster, or one on the CPUs where there is none."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    cpus = max(1, int(resources.get("CPU", 1)) - 1)
    each: dict[str, float] = {"GPU": 1, "CPU": max(1, cpus // gpus)} if gpus else {"CPU": cpus if local else 1}
    return [
        LaneConfig(
            name=f"lane-{number}",
            search_id=job.run.search_id,
            base=Path(job.run.base_path),
            run_folder=job.run.folder,
            training=job.training,
            quantization=job.config.quantization,
            engine=job.config.engine,
            slots=job.config.slots_per_lane,
            most_slots=most_slots(job.config, lanes=max(1, gpus)),
            largest=job.largest,
            resources=each,
            verbose=job.verbose,
        )
        for number in range(max(1, gpus))
    ]


def most_slots(config: SearchConfig, *, lanes: int) -> int:
    """Return how many slots of a lane a search can make use of.

    Where trials are stopped early, a third of them at once: a trial that begins with all others can neither take the
    slot of one that was stopped, nor be proposed from what they found.
    """
    if config.max_concurrent_trials is not None:
        return min(config.num_samples, config.max_concurrent_trials)
    if config.scheduler in ("fifo", None) or isinstance(config.scheduler, PAUSING):
        return config.num_samples
    return max(2, math.ceil(config.num_samples / (REDUCTION_FACTOR * lanes)))


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


class _Farewell(tune.Callback):
    """Tells the broker of trials that Tune is done with; their actors see a stop, a pause and a copy alike."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._broker.dismiss.remote(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._broker.dismiss.remote(trial.trial_id)


def _tuner(job: Job, broker: Any, slots: int) -> tune.Tuner:
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
    # the broker. With no number at all Tune would add one whenever an actor has started.
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
    search_alg: Any = Population(searcher, at_once=at_once) if population else searcher
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=job.config.metric,
            mode=job.config.mode,
            search_alg=search_alg,
            scheduler=build_scheduler(
                job.config.scheduler, grace_steps=min(eval_steps, max_steps), max_steps=max_steps
            ),
            num_samples=job.config.num_samples,
            max_concurrent_trials=None if population else at_once,
            time_budget_s=job.config.time_budget_s,
            reuse_actors=True,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=tune.RunConfig(
            name=job.run.tune.name,
            storage_path=str(job.run.tune.parent),
            stop=_StopFlag(),
            callbacks=[_Farewell(broker)],
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=1 if job.verbose else 0,
        ),
    )


def _trial_folder(trial: Any) -> str:
    return str(trial.trial_id)


class _Follower(threading.Thread):
    """Carries the broker's events to the registry and the terminal while Tune has the main thread."""

    def __init__(self, broker: Any, record: Callable[[Sequence[Event]], None], watch: Watch) -> None:
        super().__init__(name="rankloom-follower", daemon=True)
        self._broker = broker
        self._record = record
        self._watch = watch
        self._over = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        seen = 0
        # Whatever goes wrong here (a full disk, a lost broker) must end the search and reach the caller.
        try:
            while True:
                over = self._over.is_set()
                events = ray.get(self._broker.events.remote(seen, 0.0 if over else 1.0))
                if events:
                    self._record(events)
                    seen += len(events)
                self._watch(events, *ray.get(self._broker.state.remote()))
                if over and not events:
                    return
        except BaseException as error:  # noqa: BLE001
            self.error = error
            _STOP.set()
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._broker.close.remote())

    def finish(self) -> None:
        """Wait until all events are recorded."""
        self._over.set()
        self.join()


@contextlib.contextmanager
def _interruptible(broker: Any) -> Iterator[None]:
    """Let the first Ctrl-C close the broker and end Tune's loop; a second one raises at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_interrupt(number: int, frame: Any) -> None:
        if _STOP.is_set():
            raise KeyboardInterrupt
        _STOP.set()
        broker.close.remote()

    before = {number: signal.signal(number, on_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_for_lanes(lanes: Sequence[LaneState]) -> None:
    failed = [lane for lane in lanes if lane.state == "failed"]
    if failed:
        raise SearchError("; ".join(f"{lane.lane}: {lane.message}" for lane in failed))
