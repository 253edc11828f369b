"""A search from the user's side: check everything, start it, follow it, hand back what it found."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rankloom.config import SearchConfig, load_config, parse_config, rungs
from rankloom.errors import SearchError
from rankloom.history import last_heard, read_past, read_story
from rankloom.prepare import Prepared, SearchPlan, prepare
from rankloom.recorder import Recorder
from rankloom.result import SearchResult, read_result
from rankloom.runs import LOCK, Run, alone_in, cannot_make, check_free, open_run, plain_config
from rankloom.watch import Silence, Watcher
from rankloom_registry import BaseSeen, Event, Registry, SearchEnded, SearchExtended, SearchResumed, SearchStarted
from rankloom_spaces import SearchSpace

if TYPE_CHECKING:
    from rankloom.cluster.job import Job


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
            RegistryError: The registry cannot be written.
        """
        import tempfile

        name = self._name()
        if self._run is None:
            self._check(name)
            with tempfile.TemporaryDirectory(prefix="rankloom-plan-") as folder:
                prepared = prepare(self.config, Path(folder), Silence())
        else:
            with self._run.alone():
                _, prepared = self._taken_up(self._reread(self._run), Silence())
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
            KeyboardInterrupt: Ctrl-C, or somebody stopped the search from elsewhere; finished trials are recorded,
                `Search.resume(name)` goes on.
        """
        watch = watch or Silence()
        with ExitStack() as lock:
            registry, job = self._new(watch, lock) if self._run is None else self._resumed(self._run, watch, lock)
            return self._follow(job, registry, watch, verbose=verbose)

    def _name(self) -> str:
        model = Path(self.config.model_name_or_path).stem[:40]
        name = self.config.name or f"{model}-{datetime.now():%Y%m%d-%H%M%S}"
        return re.sub(r"[^A-Za-z0-9._-]|\.(?=\.)", "-", name).lstrip("._-")  # what the registry takes as a name

    def _check(self, name: str) -> None:
        """Refuse what can be refused before the base and the dataset are read."""
        check_free(self.config.storage / name)
        Registry.check(self.config.registry.expanduser())

    def _new(self, watch: Watcher, lock: ExitStack) -> tuple[Registry, Job]:
        name = self._name()
        folder = self.config.storage / name
        self._check(name)
        with _made(folder, lock):
            prepared = prepare(self.config, folder, watch)
            # Only now, so that a search that is refused leaves no registry behind.
            registry = Registry.open(self.config.registry.expanduser(), create=True)
            search_id = secrets.token_hex(6)
            run = Run(
                folder=folder,
                search_id=search_id,
                name=name,
                config=plain_config(self.config) | self._places(registry.path, name) | prepared.found(),
                base_path=str(prepared.base.path),
                base_content_root=prepared.fingerprint.content_root,
            )
            lock.enter_context(run.listening())  # before anybody can read of it
            registry.record(
                BaseSeen(base=prepared.fingerprint, leaves=prepared.leaves),
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

    def _places(self, registry: Path, name: str) -> dict[str, str]:
        """Return settings that say where a search lies, so that it is found from any folder."""
        storage = {} if self.config.storage_path is None else {"storage_path": str(self.config.storage)}
        return {"name": name, "registry": str(registry), **storage}

    def _resumed(self, run: Run, watch: Watcher, lock: ExitStack) -> tuple[Registry, Job]:
        from rankloom.cluster.lane import read_event_logs

        lock.enter_context(run.alone())
        run = self._reread(run)
        registry, prepared = self._taken_up(run, watch)
        # What the lanes logged before the interruption but nobody recorded; what is recorded already is ignored.
        _recorder(registry, run, self.config).record(read_event_logs(run.folder))
        registry.record(*_caught_up(registry, run, self.config), SearchResumed(search_id=run.search_id))
        return registry, prepared.job(run, self.config, past=read_past(registry, run.search_id))

    def _reread(self, run: Run) -> Run:
        """Read a run's record again, now that no other driver writes it: trials may have been added meanwhile."""
        run = open_run(run.folder, run.folder.parent)
        self.config = self.config.model_copy(update={"num_samples": run.config["num_samples"]})
        return run

    def _taken_up(self, run: Run, watch: Watcher) -> tuple[Registry, Prepared]:
        registry = Registry.open(self.config.registry.expanduser())
        Registry.check(registry.path)
        watch.say(f"resuming {run.name}")
        prepared = prepare(self.config, run.folder, watch, resume=True)
        if prepared.fingerprint.content_root != run.base_content_root:
            raise SearchError(
                f"the base in {run.base_path} is not the one that {run.name!r} began with: "
                "put the old weights back, or start a new search"
            )
        return registry, prepared

    def _follow(self, job: Job, registry: Registry, watch: Watcher, *, verbose: bool) -> SearchResult:
        from dataclasses import replace

        from rankloom.cluster.driver import run_job
        from rankloom.cluster.job import StoppedOnRequest

        run = job.run
        recorder = _recorder(registry, run, self.config)
        watch.begin(run.name, self.config, job.training)
        watch.update(read_story(registry, run.search_id), (), ())
        end: dict[str, Any] = {"status": "failed"}
        try:
            run_job(replace(job, verbose=verbose), record=recorder.record, watch=watch.update, registry=registry.path)
            end = {"status": "completed"}
        except StoppedOnRequest as stop:
            end = {"status": "interrupted", "message": str(stop), "who": stop.request.who, "why": stop.request.why}
            raise
        except KeyboardInterrupt:
            end = {"status": "interrupted", "message": "interrupted by the user"}
            raise
        except Exception as error:
            end["message"] = str(error)
            raise
        finally:
            registry.record(SearchEnded(search_id=run.search_id, **end))
        return read_result(registry, run.search_id, run.folder)


def _caught_up(registry: Registry, run: Run, config: SearchConfig) -> list[Event]:
    """Return what a driver that was killed had no time to record."""
    search = registry.search(run.search_id)
    events: list[Event] = []
    if search.num_samples != config.num_samples:  # trials were added
        events.append(SearchExtended(search_id=run.search_id, num_samples=config.num_samples))
    if search.status == "running":
        died = last_heard(registry, run.search_id)
        events.append(SearchEnded(search_id=run.search_id, status="interrupted", message="its process died", at=died))
    return events


def _recorder(registry: Registry, run: Run, config: SearchConfig) -> Recorder:
    return Recorder(
        registry,
        search_id=run.search_id,
        name=run.name,
        base_content_root=run.base_content_root,
        adapters=run.adapters,
        keep_top=config.keep_top,
    )


@contextmanager
def _made(folder: Path, lock: ExitStack) -> Iterator[None]:
    """Make a run folder, and let `lock` keep others out; when what follows fails, what was made is gone again."""
    existed = folder.parent.exists()
    try:
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
        lock.enter_context(alone_in(folder))
        check_free(folder)  # once more: only now nobody else makes it
        for left in folder.iterdir():  # by a search that never began
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != LOCK:
                left.unlink()
    except OSError as error:
        raise cannot_make(folder, str(error.strerror)) from error
    try:
        yield
    # Planned: whatever ends the preparation, Ctrl-C too, leaves no folder behind, and is raised again.
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed and not any(folder.parent.iterdir()):
            folder.parent.rmdir()
        raise
