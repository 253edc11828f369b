"""Finds, checks, makes and migrates the file of a registry."""

from __future__ import annotations

import os
from pathlib import Path

from rankloom_registry import schema
from rankloom_registry.database import attach, attached
from rankloom_registry.errors import RegistryFormatError, RegistryNotFoundError, RegistryWriteError
from rankloom_registry.files import sync_folder
from rankloom_registry.locking import turn


def open_file(path: str | os.PathLike[str], *, create: bool, wait_s: float) -> tuple[Path, Path]:
    """Check the file of a registry; make it, or bring it to the newest schema, when `create`.

    Args:
        path: The file.
        create: Whether a file may be made or migrated.
        wait_s: The longest wait for other programs, in seconds.

    Returns:
        The resolved paths of the file and of the folder that holds its artifacts.

    Raises:
        RegistryNotFoundError: If there is no such file and `create` is not given.
        RegistryFormatError: If the file is not a registry of a known version.
        RegistryWriteError: If it cannot be made there.
        RegistryBusyError: If another program kept it for longer than `wait_s`.
    """
    resolved = Path(path).expanduser().resolve()
    if create and not resolved.exists():
        _make(resolved, wait_s)
    if not resolved.is_file():
        if resolved.exists():
            raise RegistryFormatError(f"a registry is a file, and {resolved} is not; give the path of the file")
        raise RegistryNotFoundError(
            f"there is no registry at {resolved}; run a search, which makes one, or give another path with --registry"
        )
    with attached(resolved, write=False, timeout_s=wait_s) as connection:
        current = schema.applied(connection, resolved) == list(schema.MIGRATIONS)
        folder = schema.artifacts_folder(connection) if current else _artifacts_name(resolved)
    if not current:
        if not create:
            raise RegistryFormatError(
                f"{resolved} is empty or of an older version; bring it up to date with Registry.open(path, create=True)"
            )
        with attached(resolved, write=True, timeout_s=wait_s) as connection:
            schema.migrate(connection, resolved, folder)
            folder = schema.artifacts_folder(connection)
    return resolved, resolved.with_name(folder)


def _make(path: Path, wait_s: float) -> None:
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        what = "cannot be written" if path.parent.is_dir() else "does not exist"
        raise RegistryWriteError(f"cannot make a registry at {path}: the folder {what}; make it, or give another path")
    # Under another name until it is whole, so that whoever finds the file finds a registry.
    unfinished = path.with_name(path.name + ".new")
    with turn(path, write=True, timeout_s=wait_s):
        if path.exists():
            return
        for leftover in (unfinished, unfinished.with_name(unfinished.name + ".wal")):
            leftover.unlink(missing_ok=True)
        with attach(unfinished, write=True, timeout_s=wait_s) as connection:
            schema.migrate(connection, path, _artifacts_name(path))
        unfinished.rename(path)
        sync_folder(path.parent)


def _artifacts_name(path: Path) -> str:
    return path.name.removesuffix(".duckdb") + ".artifacts"
