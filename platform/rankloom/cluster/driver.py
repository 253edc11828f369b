"""The driver of a search: starts the broker and the lanes, lets Ray Tune decide, and follows what happens."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import ray
from ray.tune.schedulers import PopulationBasedTraining

from rankloom.cluster.broker import Broker
from rankloom.cluster.flight import LaneState
from rankloom.cluster.following import Follower, interruptible
from rankloom.cluster.job import STOP, Job, StoppedOnRequest, Watch
from rankloom.cluster.lane import LaneConfig, run_lane
from rankloom.cluster.owner import owned
from rankloom.cluster.proposing import Room
from rankloom.cluster.steering import Steering
from rankloom.cluster.tuning import PAUSING, build_tuner
from rankloom.config import REDUCTION_FACTOR, SearchConfig
from rankloom.errors import ConfigError, SearchError
from rankloom_registry import Event

DRAIN_S = 600.0


def run_job(job: Job, *, record: Callable[[Sequence[Event]], None], watch: Watch, registry: Path | None = None) -> None:
    """Run a search to its end.

    Args:
        job: The search.
        record: Called with each batch of events, in order; what it raises ends the search.
        watch: Called at least every second with new events, lanes and progress.
        registry: The registry file that `record` writes to; it has an owner while the search runs.

    Raises:
        ConfigError: The scheduler asks for what the engine cannot do.
        SearchError: No lane could run, one failed or found its base changed, or a trial did not end when it was to.
        KeyboardInterrupt: Ctrl-C; what was recorded stays, and the search can be resumed.
        StoppedOnRequest: Somebody asked for its end, which does the same.
    """
    STOP.clear()
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
        tasks = {run_lane.remote(lane, broker): lane.name for lane in lanes}
        room = Room(job.config.num_samples)
        steering = Steering(job, broker, room, record)
        follower = Follower(broker, tasks, record, watch, steering)
        follower.start()
        try:
            with interruptible(broker):
                # Tune is to propose as many trials at once as there are slots, and a lane measures how many it has.
                if slots := ray.get(broker.planned.remote()):
                    build_tuner(job, broker, slots, room).fit()
                room.close()
                if not STOP.is_set():
                    drain(broker)
            follower.finish()
            ray.get(broker.close.remote())
            if STOP.is_set() and follower.error is None:
                raise KeyboardInterrupt if steering.stopped is None else StoppedOnRequest(steering.stopped)
            if follower.error is not None:
                raise follower.error
            # Each lane now proves that its base was left as it was; a search that cannot say so is not completed.
            _, pending = ray.wait(list(tasks), num_returns=len(tasks), timeout=DRAIN_S)
            if pending:
                raise SearchError(f"{len(pending)} lanes did not end within {DRAIN_S:.0f} s of the last trial")
            check_lanes(ray.get(broker.state.remote())[0])
            shutil.rmtree(job.run.checkpoints, ignore_errors=True)  # every trial has ended
        finally:
            follower.finish()
            for task in tasks:
                ray.cancel(task, force=True)
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


def drain(broker: Any) -> None:
    """Wait until no lane has a trial in hand.

    Raises:
        SearchError: A lane takes too long over its trials' end.
    """
    if not ray.get(broker.drained.remote(DRAIN_S)):
        raise SearchError(f"a trial did not end within {DRAIN_S:.0f} s of the word to stop; go on with it by --resume")


def check_lanes(lanes: Sequence[LaneState]) -> None:
    """Check that every lane that is over ended as one does that found its base unchanged.

    Raises:
        SearchError: One failed, or died without a word.
    """
    if failed := [lane for lane in lanes if lane.state != "done"]:
        reasons = (f"{lane.lane}: {lane.message if lane.state == 'failed' else 'its process died'}" for lane in failed)
        raise SearchError("; ".join(reasons))
