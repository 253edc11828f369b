"""What Ray Tune sees of a trial: a feather-light actor that submits it and passes its results on."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from safetensors import safe_open

from rankloom_registry.files import write_atomically

STATE = "state.safetensors"
CPU_SHARE = 0.01
INTERRUPTED = "interrupted"


class LaneTrial(tune.Trainable):
    """A trial that trains elsewhere; `reuse_actors` hands the actor from trial to trial in 0.02 s."""

    _submission: tuple[int, dict[str, Any]]
    _lease: int | None  # of the submission, from the first step to a checkpoint
    _from_step: int | None  # of the checkpoint to go on from; not `_restored`, which Trainable has for itself

    def setup(  # type: ignore[override]  # tune.with_parameters passes the rest
        self,
        config: dict[str, Any],
        broker: Any,
        search_id: str,
        resolve: Callable[[dict[str, Any]], dict[str, Any]],
        seed: int,
        checkpoints: Path,
    ) -> None:
        """Begin the first trial.

        Args:
            config: What `OptunaSearcher.suggest` returned.
            broker: Handle of the search's broker.
            search_id: Id of the search.
            resolve: Turns sampled parameters into a trial's configuration.
            seed: Seed of every trial.
            checkpoints: Folder where lanes keep the states of trials in training.
        """
        self._broker = broker
        self._search_id = search_id
        self._resolve = resolve
        self._seed = seed
        self._checkpoints = checkpoints
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial; whether the last one was stopped, paused or copied over, the broker hears elsewhere."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next result; a trial that the close of the search cut short ends as 'interrupted'."""
        # Not before: Tune gives a configuration first, and then perhaps a checkpoint to go on from. And again where
        # Tune took a checkpoint and lets the trial go on after all.
        if self._lease is None:
            submitted = self._broker.submit.remote(
                self._trial, *self._submission, restored=self._from_step, seen=self._index
            )
            self._lease = ray.get(submitted)
            self._from_step = None
        result = ray.get(self._broker.next_result.remote(self._trial, self._index))
        self._index += 1
        return dict(result or {"done": True, "outcome": INTERRUPTED})

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy the state that the lane wrote before it reported, and let go of the slot.

        A scheduler that takes a checkpoint pauses the trial, most often for others that need the slot to come as far;
        and Tune may keep the actor of a paused trial for long without a word.
        """
        # There is none of a trial that ended in an earlier run, or whose engine keeps none.
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(self._state, Path(checkpoint_dir) / STATE)
        if self._lease is not None:
            ray.get(self._broker.release.remote(self._trial, self._lease, paused=True))
            self._lease = None

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Let the trial go on from a state: its own after a pause, or another trial's."""
        kept = Path(checkpoint) / STATE
        if kept.is_file():
            # A lane that still had the trial would train on the state, or remove it.
            ray.get(self._broker.recall.remote(self._trial))
            with safe_open(kept, framework="numpy") as opened:  # without torch, which takes seconds to import
                self._from_step = int(json.loads(opened.metadata()["record"])["step"])
            write_atomically(self._state, kept.read_bytes())

    @property
    def _state(self) -> Path:
        return self._checkpoints / f"{self._trial}.safetensors"

    def _begin(self, config: dict[str, Any]) -> None:
        # Not Tune's id, which is another one when the search is resumed.
        mine = f"{self._search_id}-{config['number']}"
        self._trial: str = ray.get(self._broker.name.remote(self.trial_id, mine))
        self._index = 0
        self._lease = self._from_step = None
        number = int(self._trial.rpartition("-")[2])
        self._submission = number, {**self._resolve(config["params"]), "seed": self._seed}
