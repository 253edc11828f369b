"""Files and folders that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def reports_folder(registry: Path) -> Path:
    """Return where the rows of a registry's evaluations are kept: one file a run, by the id that its records share."""
    return registry.with_name(registry.name.removesuffix(".duckdb") + ".evaluations")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name, and give it its own when it is whole and on the disk.

    Args:
        path: Where it goes; a file that is there is replaced.
        content: All of it.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)
