"""What a user of Ray Tune and TRL writes: a trainable that loads the base, trains, and reports each rung."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from _engines import build, specs_of
from _task import Task
from _world import grid
from datasets import load_from_disk
from ray import tune

from rankloom.hush import hush
from rankloom.training.exchange import Free, Orders, Outcome, Report, TrialSpec, Verdict
from rankloom.training.resident import load_resident_base


class TrlTrial(tune.Trainable):
    """A trial in an actor; with `reuse_actors` the base stays for the next trial."""

    _exchange: RungExchange
    _reported: bool

    def setup(self, config: dict[str, Any], task: Task, seed: int, data: Path) -> None:  # type: ignore[override]
        hush()
        self._specs = specs_of(grid(task.axes), seed)
        self._engine = build(
            "sequential",
            base=load_resident_base(task.model, task.quantization, task.training),
            train=load_from_disk(str(data / "train")),
            held_out=load_from_disk(str(data / "eval")),
            training=task.training,
            adapters=data / "adapters",
            slots=1,
        )
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._reported:
            self._exchange.verdicts.put("go_on")
        result: dict[str, Any] = self._exchange.results.get()
        self._reported = True
        if result["status"] == "failed":
            raise RuntimeError(result["message"])
        return {**result, "done": result["status"] == "completed"}

    def cleanup(self) -> None:
        self._end()

    def _begin(self, config: dict[str, Any]) -> None:
        self._reported = False
        self._exchange = RungExchange(self._specs[config["number"]])
        # TRL's trainer keeps the thread that it runs in, and Tune wants each rung's result in its own.
        self._thread = Thread(target=self._engine.run, args=(self._exchange,), daemon=True)
        self._thread.start()

    def _end(self) -> None:
        self._exchange.verdicts.put("stop")  # heard only by a trial that is not over
        self._thread.join()


class RungExchange:
    """One trial, whose trainer waits at each rung for a verdict."""

    def __init__(self, spec: TrialSpec) -> None:
        self._trials: tuple[TrialSpec, ...] = (spec,)
        self._trial_id = spec.trial_id
        self.results: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.verdicts: SimpleQueue[Verdict] = SimpleQueue()

    def orders(self, free: Free, wait_s: float | None) -> Orders:
        if not free:
            return Orders(verdicts={self._trial_id: self.verdicts.get()})
        trials, self._trials = self._trials, ()
        return Orders(trials=trials, over=not trials)

    def progress(self, spec: TrialSpec, step: int, train_loss: float) -> None:
        return

    def report(self, reports: Sequence[Report]) -> None:
        for _, metrics in reports:
            self.results.put({**metrics, "status": "running"})

    def finish(self, spec: TrialSpec, outcome: Outcome) -> None:
        self.results.put({**outcome.metrics, "status": outcome.status, "message": outcome.message})
