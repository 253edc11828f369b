"""A folder beside the output in which a promotion is built: it outlives an interruption; the output appears whole."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankloom.errors import PromotionError
from rankloom_registry.files import sync_folder, write_atomically

_PLAN = "plan.json"


def output_folder(path: Path) -> Path:
    """Return an output folder's absolute path, once it is clear that nothing would be overwritten.

    Raises:
        PromotionError: It exists and is not an empty folder, or its parent does not exist.
    """
    output = path.expanduser().absolute()
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise PromotionError(f"{output} exists and is not empty: choose another --output, or remove it first")
    if not output.parent.is_dir():
        raise PromotionError(f"the folder {output.parent} does not exist: make it first, or choose another --output")
    return output


@contextmanager
def staged(output: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the hidden folder in which an output is built.

    What an interrupted or killed promotion left there is yielded again, if that had the same plan, and removed if not.

    Args:
        output: As `output_folder` returned it.
        plan: What makes this promotion another one, JSON-ready.

    Yields:
        The folder; it is gone afterwards, unless the body was interrupted.

    Raises:
        PromotionError: Another process is building this output, or the folder cannot be made.
    """
    folder = output.with_name(f".{output.name}.promoting")
    try:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PromotionError(f"cannot build in {folder}: {error.strerror}; choose another --output") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PromotionError(
                f"another promotion is writing {output}: wait for it, or choose another --output"
            ) from None
        _begin(folder, json.dumps(plan, sort_keys=True).encode())
        try:
            yield folder
        except KeyboardInterrupt:  # the same command goes on from here
            raise
        # Planned: whatever else ends a promotion leaves nothing half-made behind, and is raised again.
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def let_out(model: Path, output: Path) -> None:
    """Give a finished folder its name, so that it is there whole or not at all, whatever happens."""
    for path in model.rglob("*"):
        if path.is_dir():
            sync_folder(path)
    sync_folder(model)
    if output.exists():
        output.rmdir()
    model.rename(output)
    sync_folder(output.parent)


def _begin(folder: Path, plan: bytes) -> None:
    note = folder / _PLAN
    if note.is_file() and note.read_bytes() == plan:
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    write_atomically(note, plan)
