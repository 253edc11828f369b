"""What Ray Tune sees of a trial: a feather-light actor that submits it and passes its results on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune

from rankloom_registry.files import write_atomically

STATE = "state.safetensors"
CPU_SHARE = 0.01
INTERRUPTED = "interrupted"


class LaneTrial(tune.Trainable):
    """A trial that trains elsewhere; `reuse_actors` hands the actor from trial to trial in 0.02 s."""

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
        """Let go of the last trial and begin the next."""
        self._release()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next result; a trial that the close of the search cut short ends as 'interrupted'."""
        # Not before: Tune gives a configuration first, and then perhaps a checkpoint to go on from.
        if self._submission is not None:
            ray.get(self._broker.submit.remote(self._trial, *self._submission, restored=self._restored))
            self._submission = None
        self._kept = False
        result = ray.get(self._broker.next_result.remote(self._trial, self._index))
        self._index += 1
        return dict(result or {"done": True, "outcome": INTERRUPTED})

    def cleanup(self) -> None:
        """Let go of the trial, so that its lane stops it and takes another."""
        self._release()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy the state that the lane wrote before it reported."""
        shutil.copyfile(self._state, Path(checkpoint_dir) / STATE)
        self._kept = True

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Let the trial go on from a state: its own after a pause, or another trial's."""
        from rankloom.training.packed.checkpoint import read_record

        kept = Path(checkpoint) / STATE
        self._restored = int(read_record(kept)["step"])
        write_atomically(self._state, kept.read_bytes())

    @property
    def _state(self) -> Path:
        return self._checkpoints / f"{self._trial}.safetensors"

    def _begin(self, config: dict[str, Any]) -> None:
        # Not Tune's id, which is another one when the search is resumed.
        mine = f"{self._search_id}-{config['number']}"
        self._trial: str = ray.get(self._broker.name.remote(self.trial_id, mine))
        self._index = 0
        self._kept = False  # whether Tune took a checkpoint since the last result: a trial that it lets go is paused
        self._restored: int | None = None
        number = int(self._trial.rpartition("-")[2])
        self._submission: tuple[int, dict[str, Any]] | None = (
            number,
            {**self._resolve(config["params"]), "seed": self._seed},
        )

    def _release(self) -> None:
        if self._submission is None:
            ray.get(self._broker.release.remote(self._trial, paused=self._kept))
