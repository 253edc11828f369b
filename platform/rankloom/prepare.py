"""Everything that a search finds out before its first trial: base, space, data, steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankloom.config import SearchConfig, TrainingConfig
from rankloom.data import DataSummary, prepare_data
from rankloom.errors import ConfigError
from rankloom.models import BaseModel, leaf_modules, load_model_config, load_tokenizer, resolve_base
from rankloom.runs import Run
from rankloom.watch import Watcher
from rankloom_registry import BaseFingerprint, read_base
from rankloom_spaces import SearchSpace, load_space, resolve_target_modules
from rankloom_spaces.space import DEFAULTS

if TYPE_CHECKING:
    from rankloom.cluster.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """A dry run: what a search would do.

    Attributes:
        name: Name of the search, also of its run folder.
        base: The base's identity.
        base_path: Its folder.
        run_folder: Where the run would be kept.
        registry: Where it would be recorded.
        num_samples: Trials.
        max_steps: Optimizer steps of a full trial.
        eval_steps: Steps between evaluations.
        rungs: Steps at which early stopping decides; empty without ASHA.
        prior: Trial 0's configuration.
        target_modules: Each choice of target modules, resolved on the base.
        space: The space, as plain data; None for a function.
        data: What it would train on.
    """

    name: str
    base: str
    base_path: str
    run_folder: str
    registry: str
    num_samples: int
    max_steps: int
    eval_steps: int
    rungs: tuple[int, ...]
    prior: dict[str, Any]
    target_modules: dict[str, list[str]]
    space: dict[str, Any] | None
    data: DataSummary

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything that is known before the first trial."""

    base: BaseModel
    fingerprint: BaseFingerprint
    leaves: dict[str, str]
    data: DataSummary
    training: TrainingConfig
    space: SearchSpace | Callable[..., Any]
    points: list[dict[str, Any]]
    target_modules: dict[str, list[str]]

    @property
    def max_steps(self) -> int:
        """Steps of a full trial."""
        return self.training.max_steps or 0

    @property
    def eval_steps(self) -> int:
        """Steps between evaluations."""
        return self.training.eval_steps or 0

    def found(self) -> dict[str, Any]:
        """Return what settings led to, so that a resumed search reads no file that may have changed, or moved."""
        base = {"model_name_or_path": self.base.identity} if Path(self.base.identity).is_absolute() else {}
        return base | ({"space": self.space.to_dict()} if isinstance(self.space, SearchSpace) else {})

    def resolve(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Turn sampled parameters into a trial's configuration."""
        return self.resolver()(dict(params))

    def resolver(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return `resolve` as something that Ray can carry."""
        return self.space.resolve if isinstance(self.space, SearchSpace) else _with_defaults

    def job(self, run: Run, config: SearchConfig, **more: Any) -> Job:
        """Return what the driver needs."""
        from rankloom.cluster.job import Job

        space = self.space.distributions() if isinstance(self.space, SearchSpace) else self.space
        return Job(
            run=run,
            config=config,
            training=self.training,
            space=space,
            resolve=self.resolver(),
            points=self.points,
            largest={**self.resolve(self.points[0] if self.points else {}), "seed": config.seed},
            **more,
        )


def prepare(config: SearchConfig, folder: Path, watch: Watcher, *, resume: bool = False) -> Prepared:
    """Check a search against its base and its data, and tokenise the data once.

    Args:
        config: The search.
        folder: Its run folder; the rows go to `folder/data`.
        watch: Who is told what is being done.
        resume: Whether the rows lie in the folder already.

    Returns:
        What the trials need.

    Raises:
        RankloomError: The base or the dataset breaks a rule.
        SpaceError: The space does, or the base lacks the modules that it names.
    """
    space = _load_space(config.space)
    watch.say(f"base: {config.model_name_or_path}")
    base = resolve_base(config.model_name_or_path, config.model_revision)
    model = load_model_config(base.path)
    modules = leaf_modules(base.path)
    points, targets = [], {}
    if isinstance(space, SearchSpace):
        points = [space.prior(getattr(model, "hidden_size", None), getattr(model, "model_type", None))]
        choices = getattr(space.parameters.get("target_modules"), "values", None) or ["all-linear"]
        # Every choice, before anything is spent: a group that the base lacks must not fail in trial 7.
        targets = {choice: resolve_target_modules(choice, modules) for choice in choices}
    watch.say("fingerprinting the base")
    fingerprint, leaves = read_base(base.path, identity=base.identity)
    if resume:
        data = DataSummary(**json.loads((folder / "data" / "summary.json").read_text(encoding="utf-8")))
    else:
        watch.say("tokenising the dataset")
        (folder / "data").mkdir()
        data = prepare_data(
            dataset=config.dataset,
            eval_dataset=config.eval_dataset,
            eval_fraction=config.eval_fraction,
            max_eval_samples=config.training.max_eval_samples,
            seed=config.seed,
            tokenizer=load_tokenizer(base.path),
            max_length=config.training.max_length,
            completion_only_loss=config.training.completion_only_loss,
            folder=folder / "data",
        )
    return Prepared(
        base=base,
        fingerprint=fingerprint,
        leaves=leaves,
        data=data,
        training=with_steps(config.training, data.train_rows),
        space=space,
        points=points,
        target_modules=targets,
    )


def with_steps(training: TrainingConfig, train_rows: int) -> TrainingConfig:
    """Return the settings with `max_steps` and `eval_steps` set from the number of rows where they were not."""
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    steps = training.max_steps or max(1, math.ceil(training.num_train_epochs * math.ceil(train_rows / per_step)))
    every = min(training.eval_every(steps), steps)
    return training.model_copy(update={"max_steps": steps, "eval_steps": every})


def _load_space(space: Any) -> SearchSpace | Callable[..., Any]:
    if callable(space) and not isinstance(space, SearchSpace):
        function: Callable[..., Any] = space
        return function
    if not isinstance(space, str | os.PathLike | Mapping | SearchSpace):
        raise ConfigError(f"space must be a preset, a YAML path, a SearchSpace or a function, got {type(space)}")
    return load_space(space if isinstance(space, Mapping | SearchSpace) else str(space))


def _with_defaults(params: dict[str, Any]) -> dict[str, Any]:
    return {**DEFAULTS, "use_rslora": False, **params}
