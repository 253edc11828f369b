"""Finds, checks, makes and migrates the file of a registry."""

from __future__ import annotations

import os
from pathlib import Path

from rankloom_registry.artifacts import ArtifactStore
from rankloom_registry.errors import RegistryFormatError, RegistryNotFoundError, RegistryWriteError
from rankloom_registry.files import sync_folder
from rankloom_registry.store import schema
from rankloom_registry.store.access import attached, reading
from rankloom_registry.store.database import attach
from rankloom_registry.store.journal import Journal
from rankloom_registry.store.locking import turn
from rankloom_registry.store.recovery import free_name, tell


def open_file(
    path: str | os.PathLike[str], *, create: bool, wait_s: float, artifacts: str | None = None
) -> tuple[Path, Path | str]:
    """Check the file of a registry; make it, or bring it to the newest schema, when `create`.

    Args:
        path: The file.
        create: Whether a file may be made or migrated.
        wait_s: The longest wait for other programs, in seconds.
        artifacts: A URL for the artifacts of a registry that is made, or what one that is there must have.

    Returns:
        The resolved path of the file, and the folder or URL that holds its artifacts.

    Raises:
        RegistryNotFoundError: If there is no such file and `create` is not given.
        RegistryFormatError: If the file is not a registry of a known version, or has its artifacts elsewhere.
        RegistryWriteError: If it cannot be made there.
        RegistryBusyError: If another program kept it for longer than `wait_s`.
    """
    resolved = Path(path).expanduser().resolve()
    if artifacts is not None:
        if "://" not in artifacts:
            raise RegistryFormatError(f"artifacts lie beside the registry, or at a URL as s3://…; got {artifacts!r}")
        ArtifactStore(artifacts)  # refuses a URL that may not be recorded
    if create and not resolved.exists():
        _make(resolved, wait_s, artifacts)
    folder = _look(resolved, wait_s)
    if folder is None:
        if not create:
            raise RegistryFormatError(
                f"{resolved} is empty or of an older version; run `rankloom registry migrate`, or bring it up to date "
                "with Registry.open(path, create=True)"
            )
        migrate_file(resolved, wait_s=wait_s)
        with reading(resolved, timeout_s=wait_s) as connection:
            folder = schema.artifacts_folder(connection)
    if artifacts not in (None, folder):
        raise RegistryFormatError(
            f"{resolved} has its artifacts in {folder}, which was chosen when it was made, not in {artifacts}; "
            "open it without naming a place, or make another registry"
        )
    return resolved, folder if "://" in folder else resolved.with_name(folder)


def check_file(path: str | os.PathLike[str], *, wait_s: float) -> None:
    """Check that a registry is at a path, or can be made there, and can be written; nothing is made or migrated.

    Args:
        path: The file.
        wait_s: The longest wait for other programs, in seconds.

    Raises:
        RegistryFormatError: If the file is not a registry of a known version.
        RegistryWriteError: If it cannot be made or written.
        RegistryBusyError: If another program kept it for longer than `wait_s`.
    """
    resolved = Path(path).expanduser().resolve()
    if not resolved.exists():
        _check_folder(resolved)
        return
    _look(resolved, wait_s)
    for needed in (resolved, resolved.parent):  # a commit makes files beside it
        if not os.access(needed, os.W_OK):
            raise RegistryWriteError(
                f"cannot write to the registry {resolved}: {needed} cannot be written; "
                "change its permissions, or give another path"
            )


def migrate_file(path: Path, *, wait_s: float) -> list[str]:
    """Bring a registry to the newest schema.

    Args:
        path: The resolved path of the file.
        wait_s: The longest wait for other programs, in seconds.

    Returns:
        The names of the migrations that ran.

    Raises:
        RegistryFormatError: If the file is not a registry of a known version.
        RegistryBusyError: If a search or another program kept it for longer than `wait_s`.
    """
    with attached(path, write=True, timeout_s=wait_s) as connection:
        return schema.migrate(connection, path, _artifacts_name(path))


def _look(path: Path, wait_s: float) -> str | None:
    """The folder or URL of its artifacts, as recorded; None if the schema is of an older version."""
    if not path.is_file():
        if path.exists():
            raise RegistryFormatError(f"a registry is a file, and {path} is not; give the path of the file")
        raise RegistryNotFoundError(
            f"there is no registry at {path}; run a search, which makes one, or give another path with --registry"
        )
    with reading(path, timeout_s=wait_s) as connection:
        if schema.applied(connection, path) != list(schema.MIGRATIONS):
            return None
        return schema.artifacts_folder(connection)


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        what = "cannot be written" if path.parent.is_dir() else "does not exist"
        raise RegistryWriteError(f"cannot make a registry at {path}: the folder {what}; make it, or give another path")


def _make(path: Path, wait_s: float, artifacts: str | None) -> None:
    _check_folder(path)
    # Under another name until it is whole, so that whoever finds the file finds a registry.
    unfinished = path.with_name(path.name + ".new")
    with turn(path, write=True, timeout_s=wait_s):
        if path.exists():
            return
        for leftover in (unfinished, unfinished.with_name(unfinished.name + ".wal")):
            leftover.unlink(missing_ok=True)
        with attach(unfinished, write=True, timeout_s=wait_s) as connection:
            schema.migrate(connection, path, artifacts or _artifacts_name(path))
        _set_journal_aside(path)
        unfinished.rename(path)
        sync_folder(path.parent)


def _set_journal_aside(path: Path) -> None:
    """What an earlier registry of this name recorded is not this one's, and the only trace of it."""
    journal = Journal(path).path
    if journal.exists():
        aside = free_name(journal, "before")
        journal.rename(aside)
        tell(
            f"there was no registry at {path} any more, so a new one was made; what the earlier one held is in "
            f"{aside}: "
            f"give it back the name {journal.name} and run `rankloom registry rebuild` to have it again"
        )


def _artifacts_name(path: Path) -> str:
    return path.name.removesuffix(".duckdb") + ".artifacts"
