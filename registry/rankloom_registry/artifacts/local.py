"""Artifacts in a local folder."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from rankloom_registry.artifacts.place import BLOCK_BYTES, MANIFEST, Stored, folder_key, manifest_key
from rankloom_registry.errors import ArtifactError, RegistryWriteError
from rankloom_registry.files import sync_folder, write_atomically

_INCOMING = "incoming-"
_REMOVED = "removed-"


class LocalPlace:
    """A folder; whoever finds an artifact in it finds all of it, as a folder comes and goes by being renamed.

    Args:
        root: The folder; it is made when the first artifact comes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def folder(self, address: str) -> Path:
        """The folder of an artifact, whether it is there or not."""
        return self.root / folder_key(address)

    def staging(self) -> Path:
        """Make an empty folder beside the artifacts, from which one can be renamed."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
        except OSError as error:
            raise RegistryWriteError(f"cannot write in {self.root}: {error.strerror}; check its permissions") from error

    def publish(self, staging: Path, address: str, *, replace: bool = False) -> None:
        """Keep a folder under an address, by renaming it; one that is there stays, unless `replace`."""
        for path in staging.iterdir():
            path.chmod(0o444)
        staging.chmod(0o755)
        sync_folder(staging)
        folder = self.folder(address)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if replace:
            self.withdraw(address, spare=lambda wanted: False)
        _rename(staging, folder)
        for parent in (folder.parent, folder.parent.parent, self.root, self.root.parent):
            sync_folder(parent)

    def withdraw(self, address: str, *, spare: Callable[[float], bool]) -> bool:
        """Take an artifact away, unless it is wanted: see `Place`."""
        folder = self.folder(address)
        if not folder.exists():
            return True
        if spare(_wanted(folder)):
            return False
        try:
            trash = Path(tempfile.mkdtemp(prefix=_REMOVED, dir=self.root))
            hidden = trash / address
            try:
                folder.rename(hidden)
            except FileNotFoundError:  # another program removed it at this moment
                trash.rmdir()
                return True
            sync_folder(folder.parent)
            spared = spare(_wanted(hidden))
            if spared:
                _rename(hidden, folder)
            shutil.rmtree(trash)
        except OSError as error:
            raise RegistryWriteError(f"cannot remove {folder}: {error.strerror}; check its permissions") from error
        return not spared

    def touch(self, address: str) -> bool:
        """Say that an artifact is wanted now, by the time of its manifest; False if it is not there."""
        try:
            os.utime(self.root / manifest_key(address))
        except FileNotFoundError:
            return False
        except PermissionError:
            return True  # it is another user's, and so is its removal
        return True

    def blocks(self, key: str, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Read a file, or `size` bytes of it, a few MiB at a time."""
        with open_regular(self.root / key) as file:
            file.seek(start)
            left = size
            while block := file.read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)):
                left = None if left is None else left - len(block)
                yield block

    def read(self, keys: Collection[str]) -> dict[str, bytes]:
        """Read small files; those that are not there are left out."""
        found = {}
        for key in keys:
            with suppress(FileNotFoundError):
                found[key] = (self.root / key).read_bytes()
        return found

    def write(self, entries: Mapping[str, bytes], *, synced: bool = True) -> None:
        """Write small files, each whole or not at all; `synced` ones last through a power cut."""
        for key, content in entries.items():
            path = self.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            if synced:
                write_atomically(path, content)
                continue
            unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            unfinished.write_bytes(content)
            unfinished.rename(path)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files; one that is not there is no error."""
        for key in keys:
            (self.root / key).unlink(missing_ok=True)

    def listing(self, prefix: str) -> dict[str, Stored]:
        """All files below a folder, by key."""
        return {path.relative_to(self.root).as_posix(): stored for path, stored in _files(self.root / prefix)}

    def leftovers(self) -> dict[Path, Stored]:
        """Folders of additions and removals that did not end, or have not ended yet."""
        found = {}
        for path in self.root.glob("*"):
            if path.name.startswith((_INCOMING, _REMOVED)):
                with suppress(FileNotFoundError):
                    inside = [stored for _, stored in _files(path)]
                    newest = max([path.stat().st_mtime, *(stored.modified for stored in inside)])
                    found[path] = Stored(sum(stored.size for stored in inside), newest)
        return found


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to read; not through a link, and without waiting for whoever would write to a pipe.

    Raises:
        ArtifactError: If it is not there, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read as a regular file: {error.strerror}; links are not followed"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{path} is not a regular file; an adapter holds nothing else")
    return os.fdopen(descriptor, "rb")


def _rename(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another program kept the same content at this moment.


def _wanted(folder: Path) -> float:
    try:
        return (folder / MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _files(folder: Path) -> Iterator[tuple[Path, Stored]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):  # gone since the folder was read
                status = path.lstat()
                yield path, Stored(status.st_size, status.st_mtime)
