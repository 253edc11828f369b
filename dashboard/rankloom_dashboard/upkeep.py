"""What lies on the disk beside a registry: looked at in the background, as a page must not wait for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import streamlit as st

from rankloom.models import split_identity
from rankloom_dashboard import data
from rankloom_registry import BaseRecord, FingerprintError, Registry, RegistryError, sample_base
from rankloom_registry.artifacts.place import ARTIFACTS, MANIFEST
from rankloom_registry.store.journal import Journal

BaseState = Literal["as recorded", "differs", "not there", "not looked at"]
_AGAIN_S = 300.0
_Missing = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found on the disk.

    Attributes:
        at: When, in seconds since the epoch.
        bytes: Size of the database, its journal and the adapters' files, unless these lie at a URL.
        missing: Id and name of each adapter whose files should be there and are not.
        bases: How each base is that lies on this machine, or lay there, by content root.
        problem: Why the registry could not be asked; empty if it could.
    """

    at: float
    bytes: int | None = None
    missing: _Missing = ()
    bases: dict[str, BaseState]
    problem: str = ""


class Inspector:
    """Looks at the disk in a thread of its own, when the last look is some minutes old."""

    def __init__(self, again_s: float = _AGAIN_S) -> None:
        """Begin with nothing seen."""
        self._again_s = again_s
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._found: dict[Path, Inspection] = {}

    def look(self, path: Path) -> Inspection | None:
        """Returns what was found last beside a registry, None if nothing yet; and looks again if that is old.

        Args:
            path: The registry's file.
        """
        with self._lock:
            found = self._found.get(path)
            busy = self._thread is not None and self._thread.is_alive()
            if not busy and (found is None or time.time() - found.at > self._again_s):
                self._thread = threading.Thread(target=self._inspect, args=(path,), daemon=True)
                self._thread.start()
            return found

    def wait(self) -> None:
        """Waits for the look that is going on."""
        if self._thread is not None:
            self._thread.join()

    def _inspect(self, path: Path) -> None:
        try:
            self._found[path] = inspect(path)
        except (RegistryError, OSError) as error:
            self._found[path] = Inspection(at=time.time(), bases={}, problem=str(error))


def inspect(path: Path) -> Inspection:
    """Looks at the disk.

    Args:
        path: The registry's file.

    Raises:
        RegistryError: The registry cannot be asked.
        OSError: Its folder cannot be read.
    """
    registry = Registry.open(path, wait_s=data.WAIT_SECONDS)
    kept = registry.sql("SELECT adapter_id, name, artifact_sha256 FROM adapters WHERE status = 'available'")
    # The database is never opened: closing it by path would drop DuckDB's lock.
    size = sum(file.stat().st_size for file in (path, Journal(path).path) if file.exists())
    missing: _Missing = ()
    if isinstance(registry.artifacts.root, Path):
        there = artifact_sizes(registry.artifacts.root)
        size += sum(there.values())
        missing = tuple((row["adapter_id"], row["name"]) for row in kept if row["artifact_sha256"] not in there)
    states = {base.content_root: base_state(base) for base in registry.bases()}
    return Inspection(at=time.time(), bytes=size, missing=missing, bases=states)


def artifact_sizes(root: Path) -> dict[str, int]:
    """Returns what a local artifact store holds: the bytes of each artifact's files, by address."""
    found = {}
    for group in _inside(root / ARTIFACTS):
        for folder in _inside(group):
            sizes = {file.name: file.stat(follow_symlinks=False).st_size for file in _inside(folder)}
            if MANIFEST in sizes:  # without it there is no artifact
                found[folder.name] = sum(sizes.values())
    return found


def _inside(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return list(entries)
    return []


def base_state(base: BaseRecord, sample: Callable[[str], str] = sample_base) -> BaseState:
    """Says whether a base's weights still are where it was read from, by a few bytes of each tensor.

    Args:
        base: As the registry recorded it.
        sample: What takes the sample.
    """
    if base.identity.startswith("gguf:"):
        place = Path(base.identity.removeprefix("gguf:"))
    else:
        name, revision = split_identity(base.identity)
        if revision is not None or not Path(name).is_absolute():
            return "not looked at"  # of the hub: what a commit names does not change
        place = Path(name)
    there = False
    with suppress(OSError):  # it may be where nobody lets us look
        there = place.exists()
    if not there:
        return "not there"
    # A GGUF file without the prefix was recorded as what it is when dequantized.
    if base.sampled is None or (place.suffix == ".gguf" and not base.identity.startswith("gguf:")):
        return "not looked at"
    try:
        return "as recorded" if sample(str(place)) == base.sampled else "differs"
    except (FingerprintError, OSError):
        return "differs"


@st.cache_resource(show_spinner=False)
def inspector() -> Inspector:
    """Returns the one that looks for every page and every visitor."""
    return Inspector()
