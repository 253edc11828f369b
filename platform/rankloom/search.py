"""A search from the user's side: check everything, start it, follow it, hand back what it found."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from rankloom.config import SearchConfig, TrainingConfig, load_config, parse_config
from rankloom.data import DataSummary, prepare_data
from rankloom.errors import ConfigError, SearchError
from rankloom.models import BaseModel, leaf_modules, load_model_config, load_tokenizer, resolve_base
from rankloom.recorder import Recorder
from rankloom.result import METRICS, SearchResult, read_result
from rankloom.runs import PARTS, RECORD, Run, open_run, plain_config
from rankloom_registry import (
    BaseFingerprint,
    BaseSeen,
    Event,
    Registry,
    SearchEnded,
    SearchResumed,
    SearchStarted,
    TrialEnded,
    TrialRecord,
    TrialStarted,
    fingerprint_base,
)
from rankloom_spaces import SearchSpace, load_space, resolve_target_modules

if TYPE_CHECKING:
    from rankloom.cluster.broker import LaneState, Past, Progress
    from rankloom.cluster.driver import Job

ENDED = ("completed", "stopped", "failed")
FUNCTION_DEFAULTS = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "learning_rate": 2e-4,
    "use_rslora": False,
}


class Watcher(Protocol):
    """Who looks on while a search runs."""

    def say(self, message: str) -> None:
        """Tell what is being prepared."""

    def begin(self, name: str, config: SearchConfig, training: TrainingConfig) -> None:
        """Tell that trials begin."""

    def update(self, events: Sequence[Event], lanes: Sequence[LaneState], progress: Sequence[Progress]) -> None:
        """Tell what happened; called at least every second, from another thread."""


class Silence:
    """A watcher that shows nothing."""

    def say(self, message: str) -> None:
        """Show nothing."""

    def begin(self, name: str, config: SearchConfig, training: TrainingConfig) -> None:
        """Show nothing."""

    def update(self, events: Sequence[Event], lanes: Sequence[LaneState], progress: Sequence[Progress]) -> None:
        """Show nothing."""


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


class Search:
    """A search for the best QLoRA adapter of one base on one dataset."""

    def __init__(self, model_name_or_path: str, dataset: Any, **settings: Any) -> None:
        """Check a search's settings; nothing is read or written yet.

        Args:
            model_name_or_path: Hub id, local folder, or `.gguf` file.
            dataset: Hub id, `.jsonl`/`.json`/`.csv`/`.parquet` file, folder, or `datasets.Dataset`.
            **settings: Any other field of `rankloom.config.SearchConfig`.

        Raises:
            ConfigError: A setting is unknown or out of bounds.
        """
        values = {"model_name_or_path": model_name_or_path, "dataset": dataset, **settings}
        if "registry" not in settings and (registry := os.environ.get("RANKLOOM_REGISTRY")):
            values["registry"] = registry
        self.config = parse_config(values)
        self._run: Run | None = None

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], **overrides: Any) -> Self:
        """Read a search file; keywords win over it.

        Raises:
            ConfigError: The file or a setting breaks a rule.
        """
        return cls._of(load_config(path, overrides))

    @classmethod
    def resume(cls, name_or_path: str | os.PathLike[str], *, registry: str | os.PathLike[str] | None = None) -> Self:
        """Take up a search that was interrupted; `run()` then trains what is missing.

        Args:
            name_or_path: Its name, or the path of its run folder.
            registry: The registry, where it is not the one that the search began with; its run folder lies beside it.

        Raises:
            SearchError: There is no such run.
        """
        file = Path(registry or os.environ.get("RANKLOOM_REGISTRY") or "registry.duckdb")
        run = open_run(Path(name_or_path), file.expanduser().absolute().with_suffix(".runs"))
        config = run.search_config()
        search = cls._of(config if registry is None else config.model_copy(update={"registry": file}))
        search._run = run
        return search

    @classmethod
    def _of(cls, config: SearchConfig) -> Self:
        search = cls.__new__(cls)
        search.config = config
        search._run = None
        return search

    def plan(self) -> SearchPlan:
        """Check the whole search against its base and dataset, and say what it would do; nothing is kept.

        Raises:
            RankloomError: What `run()` would refuse.
        """
        import tempfile

        with tempfile.TemporaryDirectory(prefix="rankloom-plan-") as folder:
            prepared = _prepare(self.config, Path(folder), Silence())
        name = self._name()
        return SearchPlan(
            name=name,
            base=prepared.base.identity,
            base_path=str(prepared.base.path),
            run_folder=str(self.config.storage / name),
            registry=str(self.config.registry.expanduser().absolute()),
            num_samples=self.config.num_samples,
            max_steps=prepared.max_steps,
            eval_steps=prepared.eval_steps,
            rungs=rungs(prepared.eval_steps, prepared.max_steps) if self.config.scheduler == "asha" else (),
            prior=prepared.resolve(prepared.points[0]) if prepared.points else {},
            target_modules=prepared.target_modules,
            space=prepared.space.to_dict() if isinstance(prepared.space, SearchSpace) else None,
            data=prepared.data,
        )

    def run(self, watch: Watcher | None = None, *, verbose: bool = False) -> SearchResult:
        """Run the search to its end and return what it found.

        Args:
            watch: Who looks on; nobody by default.
            verbose: Let Ray and the libraries talk.

        Returns:
            The result; every trial in it is in the registry.

        Raises:
            RankloomError: A setting, the base or the dataset breaks a rule (nothing is kept then), or no lane could
                run.
            RegistryError: The registry cannot be written.
            KeyboardInterrupt: Ctrl-C; finished trials are recorded, `Search.resume(name)` goes on.
        """
        watch = watch or Silence()
        run = self._run
        registry, job = self._new(watch) if run is None else self._resumed(run, watch)
        return self._follow(job, registry, watch, verbose=verbose)

    def _name(self) -> str:
        model = Path(self.config.model_name_or_path).stem[:40]
        name = self.config.name or f"{model}-{datetime.now():%Y%m%d-%H%M%S}"
        return "".join(char if char.isalnum() or char in "._-" else "-" for char in name).lstrip("._-")

    def _new(self, watch: Watcher) -> tuple[Registry, Job]:
        name = self._name()
        folder = self.config.storage / name
        if (folder / RECORD).exists():
            raise SearchError(
                f"a search named {name!r} already lies in {folder}: resume it with --resume, or give another --name"
            )
        with _made(folder):
            prepared = _prepare(self.config, folder, watch)
            # Only now, so that a search that is refused leaves no registry behind.
            registry = Registry.open(self.config.registry.expanduser(), create=True)
            search_id = secrets.token_hex(6)
            run = Run(
                folder=folder,
                search_id=search_id,
                name=name,
                config=plain_config(self.config) | {"name": name, "registry": str(registry.path)} | prepared.found(),
                base_path=str(prepared.base.path),
                base_content_root=prepared.fingerprint.content_root,
            )
            registry.record(
                BaseSeen(base=prepared.fingerprint),
                SearchStarted(
                    search_id=search_id,
                    name=name,
                    base_content_root=run.base_content_root,
                    dataset=prepared.data.to_dict(),
                    config=run.config,
                    metric=self.config.metric,
                    mode=self.config.mode,
                    num_samples=self.config.num_samples,
                    seed=self.config.seed,
                ),
            )
            run.save(self.config)
        return registry, prepared.job(run, self.config)

    def _resumed(self, run: Run, watch: Watcher) -> tuple[Registry, Job]:
        from rankloom.cluster.lane import read_event_logs

        registry = Registry.open(self.config.registry.expanduser())
        watch.say(f"resuming {run.name}")
        prepared = _prepare(self.config, run.folder, watch, resume=True)
        if prepared.fingerprint.content_root != run.base_content_root:
            raise SearchError(
                f"the base in {run.base_path} is not the one that {run.name!r} began with: "
                "put the old weights back, or start a new search"
            )
        registry.record(SearchResumed(search_id=run.search_id))
        # What the lanes logged before the interruption but nobody recorded; what is recorded already is ignored.
        _recorder(registry, run, self.config).record(read_event_logs(run.folder))
        return registry, prepared.job(run, self.config, past=_past(registry, run.search_id))

    def _follow(self, job: Job, registry: Registry, watch: Watcher, *, verbose: bool) -> SearchResult:
        from dataclasses import replace

        from rankloom.cluster.driver import run_job

        run = job.run
        recorder = _recorder(registry, run, self.config)
        watch.begin(run.name, self.config, job.training)
        watch.update(_story(registry, run.search_id), (), ())
        status, message = "failed", ""
        try:
            run_job(replace(job, verbose=verbose), record=recorder.record, watch=watch.update)
            status = "completed"
        except KeyboardInterrupt:
            status, message = "interrupted", "interrupted by the user"
            raise
        except Exception as error:
            message = str(error)
            raise
        finally:
            registry.record(SearchEnded(search_id=run.search_id, status=status, message=message))
        return read_result(registry, run.search_id, run.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """Everything that is known before the first trial."""

    base: BaseModel
    fingerprint: BaseFingerprint
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
        return self.space.resolve if isinstance(self.space, SearchSpace) else partial(_with_defaults)

    def job(self, run: Run, config: SearchConfig, **more: Any) -> Job:
        """Return what the driver needs."""
        from rankloom.cluster.driver import Job

        space = self.space.distributions() if isinstance(self.space, SearchSpace) else self.space
        return Job(
            run=run,
            config=config,
            training=self.training,
            space=space,
            resolve=self.resolver(),
            points=self.points,
            **more,
        )


def _prepare(config: SearchConfig, folder: Path, watch: Watcher, *, resume: bool = False) -> _Prepared:
    """Resolve the base, the space and the data; on resume the data that lie in the folder are used."""
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
    fingerprint = fingerprint_base(base.path, identity=base.identity)
    if resume:
        import json

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
    return _Prepared(
        base=base,
        fingerprint=fingerprint,
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
    every = min(training.eval_steps or max(1, steps // 4), steps)
    return training.model_copy(update={"max_steps": steps, "eval_steps": every})


def rungs(grace_steps: int, max_steps: int) -> tuple[int, ...]:
    """Return the steps at which ASHA decides."""
    from rankloom.cluster.driver import REDUCTION_FACTOR

    steps, step = [], grace_steps
    while step < max_steps:
        steps.append(step)
        step *= REDUCTION_FACTOR
    return tuple(steps)


def _load_space(space: Any) -> SearchSpace | Callable[..., Any]:
    if callable(space) and not isinstance(space, SearchSpace):
        function: Callable[..., Any] = space
        return function
    if not isinstance(space, str | os.PathLike | Mapping | SearchSpace):
        raise ConfigError(f"space must be a preset, a YAML path, a SearchSpace or a function, got {type(space)}")
    return load_space(space if isinstance(space, Mapping | SearchSpace) else str(space))


def _with_defaults(params: dict[str, Any]) -> dict[str, Any]:
    return {**FUNCTION_DEFAULTS, **params}


def _recorder(registry: Registry, run: Run, config: SearchConfig) -> Recorder:
    return Recorder(
        registry,
        search_id=run.search_id,
        name=run.name,
        base_content_root=run.base_content_root,
        adapters=run.adapters,
        keep_top=config.keep_top,
    )


def _story(registry: Registry, search_id: str) -> list[Event]:
    """Return the trials that earlier runs of a search saw to their end, as events."""
    story: list[Event] = []
    for trial in registry.trials(search_id):
        if trial.status in ENDED:
            story += [
                TrialStarted(trial_id=trial.trial_id, search_id=search_id, number=trial.number, params=trial.params),
                _end_of(trial),
            ]
    return story


def _past(registry: Registry, search_id: str) -> dict[str, Past]:
    """Return what earlier runs of a search saw of its trials; those that ended with all of their results."""
    from rankloom.cluster.broker import Past, final_result

    evaluations: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in registry.sql(
        "select m.trial_id, m.step as steps, m.eval_loss from step_metrics m join trials t using (trial_id) "
        f"where t.search_id = '{search_id}' and m.step < t.steps order by m.step"
    ):
        evaluations[row.pop("trial_id")].append(row)
    return {
        trial.trial_id: Past(
            attempts=trial.attempts,
            results=[*evaluations[trial.trial_id], final_result(_end_of(trial))] if trial.status in ENDED else (),
        )
        for trial in registry.trials(search_id)
    }


def _end_of(trial: TrialRecord) -> TrialEnded:
    metrics = {name: getattr(trial, name) for name in METRICS}
    return TrialEnded(
        trial_id=trial.trial_id,
        status=trial.status,
        metrics={name: value for name, value in metrics.items() if value is not None},
        message=trial.message,
        attempt=trial.attempts,
    )


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a run folder; when what follows fails, it and the folders made for it are gone again."""
    existed = folder.parent.exists()
    # A folder without a record is what is left of a run that never began; anything else in it is not ours to remove.
    if (
        folder.is_symlink()
        or folder.is_file()
        or (folder.is_dir() and {path.name for path in folder.iterdir()} - PARTS)
    ):
        raise SearchError(f"the run folder {folder} is taken by other files: give another --name or storage_path")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir()
    except OSError as error:
        raise SearchError(
            f"cannot make the run folder {folder}: {error.strerror}; give a registry (or a storage_path) in a folder "
            "that exists and can be written"
        ) from error
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed and not any(folder.parent.iterdir()):
            folder.parent.rmdir()
        raise
