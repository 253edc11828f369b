"""Artifacts at a URL: whatever fsspec can reach, such as s3://, gs:// or sftp://.

An object store cannot rename a folder, but writes an object whole or not at all: an artifact's manifest is written last
and deleted first, and what has no manifest does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rankloom_registry.artifacts.local import LocalPlace
from rankloom_registry.artifacts.place import BLOCK_BYTES, MANIFEST, Stored, folder_key, manifest_key
from rankloom_registry.errors import ArtifactError, ArtifactUnreachableError, MissingPackageError, RegistryError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


class RemotePlace:
    """Everything below a URL; nothing is asked of it before the first call.

    Args:
        url: Such as `s3://bucket/prefix`. Keys and endpoints come from the environment, as the backend reads them.
        scratch: Where an artifact is put together before it goes there.
    """

    def __init__(self, url: str, scratch: LocalPlace) -> None:
        if urlsplit(url).password:
            raise ArtifactError("a URL of artifacts is recorded, so it holds no password; set it in the environment")
        self.url = url
        self._scratch = scratch

    def __str__(self) -> str:
        return self.url

    def staging(self) -> Path:
        """Make an empty local folder."""
        return self._scratch.staging()

    def publish(self, staging: Path, address: str, *, replace: bool = False) -> None:
        """Upload a folder's files, the manifest last; what is there already is overwritten with the same content."""
        names = sorted((path.name for path in staging.iterdir()), key=lambda name: name == MANIFEST)
        with self._reached():
            for name in names:
                self._fs.put_file(str(staging / name), self._path(f"{folder_key(address)}/{name}"))
        if replace:
            there = {Path(key).name: key for key in self.listing(folder_key(address))}
            self.delete(key for name, key in there.items() if name not in names)

    def withdraw(self, address: str, *, spare: Callable[[float], bool]) -> bool:
        """Take an artifact away, unless it is wanted: see `Place`."""
        files, key = self.listing(folder_key(address)), manifest_key(address)
        if not files:
            return True
        if spare(max(stored.modified for stored in files.values())):
            return False
        manifest = self.read([key])
        self.delete(manifest)
        if self.read([key]) or spare(0.0):  # somebody wanted it at this moment
            self.write(manifest)
            return False
        self.delete(files)
        return True

    def touch(self, address: str) -> bool:
        """Say that an artifact is wanted now, by writing its manifest again; False if it is not there."""
        manifest = self.read([manifest_key(address)])
        self.write(manifest)
        return bool(manifest)

    def blocks(self, key: str, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Read a file, or `size` bytes of it, a few MiB at a time."""
        path = self._path(key)
        try:
            with self._reached():
                end = self._fs.size(path) if size is None else start + size
                for position in range(start, end, BLOCK_BYTES):
                    yield self._fs.cat_file(path, start=position, end=min(position + BLOCK_BYTES, end))
        except FileNotFoundError:
            raise ArtifactError(f"{self}/{key} is gone; restore it from a copy, or discard the adapter") from None

    def read(self, keys: Collection[str]) -> dict[str, bytes]:
        """Read small files, several at a time; those that are not there are left out."""
        if not keys:
            return {}
        with self._reached():
            found = self._fs.cat([self._path(key) for key in keys], on_error="return")
            for error in found.values():
                if isinstance(error, Exception) and not isinstance(error, FileNotFoundError):
                    raise error
        contents = {key: found[self._path(key)] for key in keys}
        return {key: content for key, content in contents.items() if isinstance(content, bytes)}

    def write(self, entries: Mapping[str, bytes], *, synced: bool = True) -> None:
        """Write small files, several at a time."""
        if not entries:
            return
        with self._reached():
            if not self._fs.async_impl:  # those that are not object stores have folders
                for parent in {self._path(key).rpartition("/")[0] for key in entries}:
                    self._fs.makedirs(parent, exist_ok=True)
            self._fs.pipe({self._path(key): content for key, content in entries.items()})

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files; one that is not there is no error."""
        with self._reached():
            for key in keys:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(self._path(key))

    def listing(self, prefix: str) -> dict[str, Stored]:
        """All files below a folder, by key."""
        try:
            with self._reached():
                found = self._fs.find(self._path(prefix), detail=True)
        except FileNotFoundError:
            return {}
        root = self._path("")
        return {path.removeprefix(root): Stored(int(info["size"]), _modified(info)) for path, info in found.items()}

    def leftovers(self) -> dict[Path, Stored]:
        """None of its own: what is put together for it lies in the scratch folder."""
        return {}

    @cached_property
    def _backend(self) -> tuple[Any, str]:
        # Imported where it is needed: a registry with a local folder needs none of it.
        from fsspec.core import url_to_fs

        # A listing that is remembered does not show what others wrote or removed.
        filesystem, root = url_to_fs(self.url, use_listings_cache=False)
        return filesystem, root.rstrip("/")

    @property
    def _fs(self) -> Any:
        return self._backend[0]

    def _path(self, key: str) -> str:
        return f"{self._backend[1]}/{key}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, RegistryError):
            raise
        except ImportError as error:
            scheme = urlsplit(self.url).scheme
            package = f"rankloom[{_EXTRAS[scheme]}]" if scheme in _EXTRAS else f"what fsspec needs for {scheme}://"
            raise MissingPackageError(f"cannot use {self.url}: {error}; install {package}") from error
        # Every backend brings errors of its own family, and none of them is told apart from another here.
        except Exception as error:
            raise ArtifactUnreachableError(
                f"cannot use {self.url}: {type(error).__name__}: {error}; check the address, the network, and the "
                "credentials in the environment"
            ) from error


def _modified(info: Mapping[str, Any]) -> float:
    for name in ("LastModified", "mtime", "updated", "created"):
        match info.get(name):
            case datetime() as time:
                return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
            case int() | float() as seconds:
                return float(seconds)
            case str() as text:
                return datetime.fromisoformat(text).timestamp()
    return math.inf  # where ages are not told, nothing is ever old enough to be removed
