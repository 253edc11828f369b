"""Folders that are written: nothing is ever overwritten, and each is there whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rankloom.errors import OutputError
from rankloom_registry.files import sync_folder, write_atomically

MANIFEST = "rankloom.json"  # says of a promoted folder what it is and where it comes from
_PLAN = "plan"


def absolute(path: Path) -> Path:
    """Return the absolute path of an output.

    Raises:
        OutputError: It begins with a user that there is none of.
    """
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise OutputError(
            f"{path} begins with no user of this machine; write ./{path} for a folder of that name"
        ) from error


def free_output(path: Path) -> Path:
    """Return an output folder's absolute path, once it is clear that it can be made and overwrites nothing.

    Raises:
        OutputError: It exists and is not an empty folder, or it cannot be given a finished folder's place.
    """
    output = absolute(path)
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise OutputError(f"the output must be a new or empty folder, got {output}; name another, or remove it first")
    if output.is_mount():
        raise OutputError(f"an output is built beside its place, but {output} is a mount point; name a folder in it")
    if not output.parent.is_dir():
        raise OutputError(f"the folder {output.parent} does not exist; make it first, or name another output")
    return output


def partial_folder(output: Path) -> Path:
    """Return the hidden folder in which an output is built."""
    return output.with_name(f".{output.name}.partial")


@contextmanager
def unfinished(output: Path, plan: str | None = None) -> Iterator[Path]:
    """Yield the hidden folder beside an output in which it is built, closed to every other process.

    With a plan, what is interrupted or killed stays there, and is yielded again for the same plan. Whatever else ends
    the building removes the folder, and so does its end.

    Args:
        output: As `free_output` returned it.
        plan: Says what is built of what; without one, the folder is always empty at first.

    Yields:
        The folder.

    Raises:
        OutputError: Another process builds this output or has just made it, or the folder cannot be made.
    """
    folder, kept = partial_folder(output), False
    with _held(folder, output):
        try:
            free_output(output)  # who held the folder until now may have made it
            _begin(folder, plan)
            yield folder
        except KeyboardInterrupt:
            kept = plan is not None
            raise
        finally:
            if not kept:
                _forget(folder)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `output` at the end, or is gone if anything went wrong.

    Args:
        output: Folder to make; it may exist only if it is empty.

    Yields:
        The folder to write into.

    Raises:
        OutputError: As for `free_output` and `unfinished`.
    """
    output = free_output(output)
    with unfinished(output) as folder:
        whole = folder / "whole"
        whole.mkdir()
        yield whole
        publish(whole, output)


def publish(folder: Path, output: Path) -> None:
    """Give a finished folder the name of an output, once all that lies in it is on the disk.

    Raises:
        OutputError: Something was put into the output meanwhile.
    """
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    folder.rename(free_output(output))
    sync_folder(output.parent)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(digests: Mapping[str, str]) -> str:
    """Return one digest over the SHA-256 of a folder's files, by their paths in it.

    Without subfolders, it is what `sha256sum * | sha256sum` prints inside the folder, with LC_ALL=C.
    """
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


@contextmanager
def _held(folder: Path, output: Path) -> Iterator[None]:
    try:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise OutputError(f"cannot build in {folder}: {error.strerror}; name another output") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another one if who held it until now removed it after we had opened it.
            held = os.path.samestat(os.fstat(lock), folder.lstat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            raise OutputError(f"another process is writing {output}; wait for it, or name another output")
        yield
    finally:
        os.close(lock)


def _begin(folder: Path, plan: str | None) -> None:
    note = folder / _PLAN
    if plan is not None and note.is_file() and note.read_text(encoding="utf-8") == plan:
        return
    _forget(folder)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if plan is not None:
        write_atomically(note, plan.encode())


def _forget(folder: Path) -> None:
    """Remove the plan before all else: what a kill then leaves of the folder is not taken for what was built."""
    (folder / _PLAN).unlink(missing_ok=True)
