"""A search's run folder: its configuration, tokenised data, logs and Ray's own state."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rankloom.config import SearchConfig, parse_config
from rankloom.errors import ConfigError, SearchError
from rankloom.mailbox import Mailbox
from rankloom_registry.files import write_atomically
from rankloom_spaces import SearchSpace

RECORD = "search.json"
CHECKPOINTS = "checkpoints"
REQUESTS = "requests"
OBJECTS = "objects.pkl"
LOCK = "driver.lock"
PARTS = {
    "data",
    "adapters",
    CHECKPOINTS,
    REQUESTS,
    "events",
    "tune",
    "train",
    "study.jsonl",
    OBJECTS,
    LOCK,
}  # what a run may leave
ANSWER_S = 1.0  # whoever asked reads the answer within a moment, unless they are gone
LOCK_WAIT_S = 1.0  # whoever looks whether a search runs holds the lock for a moment
LIVE = ("space", "sampler", "scheduler")  # settings that may be functions or objects, which JSON cannot keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run folder says of its search.

    Attributes:
        folder: The run folder, absolute.
        search_id: Id of the search in the registry.
        name: Name of the search and of the folder.
        config: Its configuration; objects that were passed in Python stand as text.
        base_path: Folder of the base.
        base_content_root: Fingerprint of the base.
    """

    folder: Path
    search_id: str
    name: str
    config: dict[str, Any]
    base_path: str
    base_content_root: str

    @property
    def data(self) -> Path:
        """Folder of the tokenised rows."""
        return self.folder / "data"

    @property
    def adapters(self) -> Path:
        """Folder where lanes leave adapters."""
        return self.folder / "adapters"

    @property
    def checkpoints(self) -> Path:
        """Folder of the states of trials in training."""
        return self.folder / CHECKPOINTS

    @property
    def tune(self) -> Path:
        """Folder of Ray Tune's experiment."""
        return self.folder / "tune" / "trials"

    @property
    def study(self) -> Path:
        """Optuna's journal of the study."""
        return self.folder / "study.jsonl"

    @property
    def requests(self) -> Path:
        """Folder of the mailbox in which others ask something of the driver."""
        return self.folder / REQUESTS

    def is_running(self) -> bool:
        """Return whether a driver has this run now.

        Raises:
            SearchError: The lock may not be read.
        """
        try:
            with (self.folder / LOCK).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            raise SearchError(f"cannot tell whether {self.name!r} runs: {error}; ask as who started it") from error
        return False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other drivers out of this run for a while, and listen; see `alone_in` and `listening`."""
        with alone_in(self.folder), self.listening():
            yield

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Have a mailbox for a while; what a driver that was killed left in it is thrown away."""
        mailbox = Mailbox(self.requests)
        mailbox.open()
        try:
            yield
        finally:
            mailbox.close(wait_s=ANSWER_S)

    def save(self, config: SearchConfig) -> None:
        """Write the record, and the objects of `config`: with them, the folder is one that can be resumed."""
        if objects := {name: getattr(config, name) for name in LIVE if _is_object(getattr(config, name))}:
            write_atomically(self.folder / OBJECTS, _pickled(objects))
        self._write(self.config)

    def _write(self, settings: Mapping[str, Any]) -> None:
        values = {**asdict(self), "folder": None, "config": dict(settings)}
        write_atomically(self.folder / RECORD, json.dumps(values, indent=2).encode())

    def extend(self, num_samples: int) -> None:
        """Write into the record how many trials the search has from now on: a resumed search goes by it."""
        self._write(self.config | {"num_samples": num_samples})

    def search_config(self) -> SearchConfig:
        """Return the configuration as it was checked, with its objects."""
        file = self.folder / OBJECTS
        objects = pickle.loads(file.read_bytes()) if file.is_file() else {}
        return parse_config({**self.config, **objects}, source=str(self.folder / RECORD))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other drivers out of a run folder for a while; the lock goes with the process, however it ends.

    Raises:
        SearchError: Another process runs or prepares this search now.
    """
    with (folder / LOCK).open("a") as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SearchError(
                        f"another process runs the search {folder.name!r} now: wait until it ends, or end it with "
                        "Ctrl-C"
                    ) from None
            time.sleep(0.01)
        if not os.fstat(file.fileno()).st_nlink:  # who had it could not prepare it, and took the folder away
            raise SearchError(f"the run folder {folder} was removed at this moment: try again")
        yield


def check_free(folder: Path) -> None:
    """Check that a new search may have a run folder; nothing is made.

    Args:
        folder: Where it would lie.

    Raises:
        SearchError: A search or other files lie there, or it cannot be made.
    """
    if (folder / RECORD).exists():
        raise SearchError(
            f"a search named {folder.name!r} already lies in {folder}: resume it with --resume, or give another --name"
        )
    # A folder without a record is what is left of a run that never began; anything else in it is not ours to remove.
    if (
        folder.is_symlink()
        or folder.is_file()
        or (folder.is_dir() and {path.name for path in folder.iterdir()} - PARTS)
    ):
        raise SearchError(f"the run folder {folder} is taken by other files: give another --name or storage_path")
    above = folder.parent if folder.parent.exists() else folder.parent.parent
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise cannot_make(folder, f"{above} {'cannot be written' if above.is_dir() else 'is no folder'}")


def cannot_make(folder: Path, reason: str) -> SearchError:
    """The error that says why a run folder cannot be made."""
    return SearchError(
        f"cannot make the run folder {folder}: {reason}; give a registry (or a storage_path) in a folder "
        "that exists and can be written"
    )


def plain_config(config: SearchConfig) -> dict[str, Any]:
    """Return a configuration as JSON-ready values; objects become their text."""
    # Not pydantic's dump of a space, a dataclass, which `load_space` could not read back.
    space = {"space": config.space.to_dict()} if isinstance(config.space, SearchSpace) else {}
    values: dict[str, Any] = json.loads(json.dumps(config.model_dump() | space, default=_plain))
    return values


def _is_object(value: Any) -> bool:
    return callable(value) or not isinstance(value, str | Path | Mapping | SearchSpace | None)


def _pickled(objects: Mapping[str, Any]) -> bytes:
    from ray import cloudpickle

    try:
        return bytes(cloudpickle.dumps(dict(objects)))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ConfigError(
            f"{', '.join(objects)} must be picklable, so that the search can be resumed: {error}; "
            "build it from picklable values, or use a name"
        ) from error


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, Path) else f"<{getattr(value, '__name__', type(value).__name__)}>"


def open_run(name_or_path: str | Path, storage: Path) -> Run:
    """Read the record of a run folder.

    Args:
        name_or_path: A search's name below `storage`, or the path of its run folder.
        storage: Folder of run folders.

    Raises:
        SearchError: There is no such run, it never got as far as its first trial, or its record cannot be read.
    """
    folder = Path(name_or_path).expanduser()
    if not _finds((folder / RECORD).is_file):
        folder = storage / Path(name_or_path).name
    if not _finds(folder.is_dir):
        known = sorted(path.parent.name for path in storage.glob(f"*/{RECORD}")) if _finds(storage.is_dir) else []
        raise SearchError(
            f"no search {str(name_or_path)!r} to resume in {storage}; "
            + (f"there are: {', '.join(known)}" if known else "start it without --resume")
        )
    if not _finds((folder / RECORD).is_file):
        raise SearchError(f"{folder} holds no {RECORD}: the search never began; remove the folder and start it again")
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Run(**{**values, "folder": folder.absolute()})
    except (OSError, TypeError, ValueError) as error:
        raise SearchError(
            f"{folder / RECORD} cannot be read as the record of a search: {error}; restore it, or start another search"
        ) from error


def _finds(look: Callable[[], bool]) -> bool:
    try:
        return look()
    except OSError:  # it may not be looked at, or has a name that is too long
        return False
