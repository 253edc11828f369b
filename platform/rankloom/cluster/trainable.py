"""What Ray Tune sees of a trial: a feather-light actor that submits it and passes its results on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray import tune

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
    ) -> None:
        """Submit the first trial.

        Args:
            config: What `OptunaSearcher.suggest` returned.
            broker: Handle of the search's broker.
            search_id: Id of the search.
            resolve: Turns sampled parameters into a trial's configuration.
            seed: Seed of every trial.
        """
        self._broker = broker
        self._search_id = search_id
        self._resolve = resolve
        self._seed = seed
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let go of the last trial and submit the next."""
        self._release()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next result; a trial that the close of the search cut short ends as 'interrupted'."""
        result = ray.get(self._broker.next_result.remote(self._trial, self._index))
        self._index += 1
        return dict(result or {"done": True, "outcome": INTERRUPTED})

    def cleanup(self) -> None:
        """Let go of the trial, so that its lane stops it and takes another."""
        self._release()

    # Trials are replayed from the broker, so there is nothing to keep.
    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Keep nothing."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Load nothing."""

    def _begin(self, config: dict[str, Any]) -> None:
        # Not Tune's id, which is another one when the search is resumed.
        self._trial = f"{self._search_id}-{config['number']}"
        self._index = 0
        params = {**self._resolve(config["params"]), "seed": self._seed}
        ray.get(self._broker.submit.remote(self._trial, config["number"], params))

    def _release(self) -> None:
        ray.get(self._broker.release.remote(self._trial))
