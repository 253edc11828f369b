"""A lane: one Ray Train worker that loads the base once and trains whatever trials the broker gives it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from rankloom.cluster.flight import Progress
from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.errors import RankloomError
from rankloom.hush import hush
from rankloom.runs import CHECKPOINTS
from rankloom.training.exchange import Free, Orders, Outcome, Report, TrialSpec, seated
from rankloom_registry import Event, EventError, TrialEnded, TrialReported, TrialStarted

MAX_RESTARTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneConfig:
    """What a lane needs to know; plain data, so that Ray can carry it.

    Attributes:
        name: The lane's name, such as 'lane-0'.
        search_id: Id of the search.
        base: Folder of the base.
        run_folder: The search's run folder, seen by every node.
        training: Settings that the trials share.
        quantization: How to load the base.
        engine: 'packed', 'trl', or None for 'packed' where it applies.
        slots: Trials trained at once; None lets the lane measure.
        most_slots: More would never be filled.
        largest: Configuration of the largest adapter that is to be expected.
        resources: Ray resources of the worker, such as {"GPU": 1, "CPU": 4}.
        verbose: Whether libraries may talk.
    """

    name: str
    search_id: str
    base: Path
    run_folder: Path
    training: TrainingConfig
    quantization: QuantizationConfig
    engine: str | None
    slots: int | None
    most_slots: int
    largest: dict[str, Any]
    resources: dict[str, float]
    verbose: bool = False


@ray.remote(num_cpus=0, max_retries=0)
def run_lane(config: LaneConfig, broker: Any) -> None:
    """Run a lane's trainer to its end; its process may die and is started again, and the trials in hand with it.

    A task of its own, because `fit` blocks; one trainer a lane, because a failure restarts every worker of a trainer.
    Not a `TorchTrainer`, which is this one and torch.distributed: a lane is one process, and a group of one would make
    accelerate wrap models for several and cost seconds to set up.
    """
    trainer = DataParallelTrainer(
        train_lane,
        train_loop_config={"lane": config, "broker": broker},
        scaling_config=ScalingConfig(
            num_workers=1, use_gpu=config.resources.get("GPU", 0) > 0, resources_per_worker=config.resources
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=str(config.run_folder / "train"),
            failure_config=FailureConfig(max_failures=MAX_RESTARTS),
        ),
    )
    # Planned fault tolerance: whatever ends a lane is told to the broker, which closes the search if none is left.
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001
        ray.get(broker.lane_ended.remote(config.name, cause_of(error)))
    else:
        ray.get(broker.lane_ended.remote(config.name))


def train_lane(loop_config: dict[str, Any]) -> None:
    """Load the base, train until the search is over, and prove that the base was left as it was."""
    config: LaneConfig = loop_config["lane"]
    broker = loop_config["broker"]
    if not config.verbose:
        hush()
    ray.get(broker.lane_started.remote(config.name, os.getpid()))
    # An error of ours would come again at every restart: it ends the lane, with its message.
    try:
        _train(config, broker)
    except RankloomError as error:
        ray.get(broker.lane_ended.remote(config.name, str(error)))


def _train(config: LaneConfig, broker: Any) -> None:
    from datasets import load_from_disk

    from rankloom.training.engines import build_engine
    from rankloom.training.resident import load_resident_base

    base = load_resident_base(config.base, config.quantization, config.training)
    engine, slots, reason = build_engine(
        config.engine,
        base=base,
        train_dataset=load_from_disk(str(config.run_folder / "data" / "train")),
        eval_dataset=load_from_disk(str(config.run_folder / "data" / "eval")),
        training=config.training,
        adapters=config.run_folder / "adapters",
        checkpoints=config.run_folder / CHECKPOINTS,
        slots=config.slots,
        most_slots=config.most_slots,
        largest=config.largest,
    )
    ray.get(broker.lane_ready.remote(config.name, slots, reason))
    with event_log(config.run_folder, config.name) as log:
        engine.run(BrokerExchange(config, broker, log))
    base.assert_unchanged()


class BrokerExchange:
    """A lane's side of the broker: every fact is written to the lane's log before it is told."""

    def __init__(self, config: LaneConfig, broker: Any, log: IO[str]) -> None:
        """Speak for a lane to `broker`, keeping `log`."""
        self._config = config
        self._broker = broker
        self._log = log

    def orders(self, free: Free, wait_s: float | None) -> Orders:
        """Ask the broker what to do."""
        orders: Orders = ray.get(self._broker.orders.remote(self._config.name, len(free), wait_s))
        orders = replace(orders, trials=seated(orders.trials, free))
        for spec in orders.trials:
            event = TrialStarted(
                trial_id=spec.trial_id,
                search_id=self._config.search_id,
                number=spec.number,
                params=spec.params,
                lane=self._config.name,
                attempt=spec.attempt,
                slot=spec.slot,
            )
            self._write(event)
            ray.get(self._broker.started.remote(event))
        return orders

    def progress(self, spec: TrialSpec, step: int, train_loss: float) -> None:
        """Tell where the trial is, without waiting."""
        self._broker.progress.remote(
            Progress(trial_id=spec.trial_id, number=spec.number, step=step, train_loss=train_loss)
        )

    def report(self, reports: Sequence[Report]) -> None:
        """Tell evaluations."""
        events = [
            TrialReported(trial_id=spec.trial_id, step=metrics["steps"], metrics=metrics) for spec, metrics in reports
        ]
        for event in events:
            self._write(event)
        ray.get(self._broker.report.remote(events))

    def finish(self, spec: TrialSpec, outcome: Outcome) -> None:
        """Tell how the trial ended; its last evaluation is a report as well."""
        events: list[TrialReported] = []
        if outcome.metrics and outcome.status == "completed":
            events.append(TrialReported(trial_id=spec.trial_id, step=outcome.metrics["steps"], metrics=outcome.metrics))
        end = TrialEnded(
            trial_id=spec.trial_id,
            status=outcome.status,
            metrics=outcome.metrics,
            message=outcome.message,
            attempt=spec.attempt,
        )
        for event in (*events, end):
            self._write(event)
        ray.get(self._broker.finish.remote(end, events))

    def _write(self, event: Event) -> None:
        self._log.write(event.to_json() + "\n")
        self._log.flush()
        os.fsync(self._log.fileno())


def event_log(run_folder: Path, lane: str) -> IO[str]:
    """Open a lane's append-only log of events, one JSON line each."""
    folder = run_folder / "events"
    folder.mkdir(exist_ok=True)
    log = (folder / f"{lane}.jsonl").open("a", encoding="utf-8")
    if log.tell():
        log.write("\n")  # a process that was killed may have left a torn line, after which ours must stand alone
    return log


def read_event_logs(run_folder: Path) -> list[Event]:
    """Return the events that lanes logged, by time; a torn line, of a process that was killed, is left out."""
    events = []
    for file in (run_folder / "events").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            with contextlib.suppress(EventError):
                events.append(Event.from_json(line))
    return sorted(events, key=attrgetter("at"))


def cause_of(error: BaseException) -> str:
    """Return an error's type and the last line of its message, where Ray has what happened."""
    *_, last = "", *str(error).strip().splitlines()
    return ": ".join(filter(None, (type(error).__name__, last.strip()[:300])))
