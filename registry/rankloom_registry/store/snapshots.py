"""Snapshots of a registry that somebody keeps for long: whole files for readers, and a pointer to the last one.

They last as long as their owner. What is recorded after it, the end of its own search first of all, is in none of them.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from rankloom_registry.errors import RegistryWriteError
from rankloom_registry.files import sync_folder, write_atomically
from rankloom_registry.store.ledger import last_sequence

POINTER = "latest.json"
KEPT = 2  # a reader may have found the pointer just before the next snapshot

_NAME = re.compile(r"registry-(\d{6,})\.duckdb")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole copy of the registry that never changes.

    Attributes:
        file: A DuckDB database with the registry's views.
        sequence: The number of the last event in it.
    """

    file: Path
    sequence: int


class Snapshots:
    """The folder of a registry's snapshots; only who has the turn to write may publish."""

    def __init__(self, registry: Path) -> None:
        """Name the folder; it is made with the first snapshot.

        Args:
            registry: The resolved path of the registry file.
        """
        self.folder = registry.with_name(registry.name.removesuffix(".duckdb") + ".snapshots")

    def latest(self) -> Snapshot | None:
        """The snapshot that the pointer names, or None if nothing was ever published."""
        try:
            pointer = json.loads((self.folder / POINTER).read_bytes())
            return Snapshot(self.folder / Path(pointer["file"]).name, int(pointer["sequence"]))
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return None

    def publish(self, connection: duckdb.DuckDBPyConnection) -> Snapshot:
        """Copy the registry, point readers to the copy, and remove all but the last ones.

        Args:
            connection: A connection that has the registry attached as `db` and is in no transaction.

        Raises:
            RegistryWriteError: If the folder cannot be written.
            duckdb.Error: If the copy cannot.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            numbers = self._numbers()
            unfinished = self.folder / ".unfinished.duckdb"
            for leftover in (unfinished, unfinished.with_name(unfinished.name + ".wal")):
                leftover.unlink(missing_ok=True)
            sequence = _copy(connection, unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            number = max(numbers, default=0) + 1
            snapshot = Snapshot(self.folder / f"registry-{number:06}.duckdb", sequence)
            unfinished.rename(snapshot.file)
            sync_folder(self.folder)
            pointer = {"file": snapshot.file.name, "sequence": sequence, "at": datetime.now(UTC).isoformat()}
            write_atomically(self.folder / POINTER, json.dumps(pointer).encode())
            for old in sorted(numbers)[: -(KEPT - 1)]:
                (self.folder / f"registry-{old:06}.duckdb").unlink(missing_ok=True)
        except OSError as error:
            raise RegistryWriteError(
                f"cannot publish in {self.folder}: {error.strerror}; check the disk and the permissions"
            ) from error
        return snapshot

    def withdraw(self) -> None:
        """Remove the pointer and every copy: whoever reads from now on reads the registry itself, which goes on."""
        with suppress(OSError):  # what stays is a copy too many, which the next owner removes
            (self.folder / POINTER).unlink(missing_ok=True)
            for number in self._numbers():
                (self.folder / f"registry-{number:06}.duckdb").unlink(missing_ok=True)
            self.folder.rmdir()

    def _numbers(self) -> list[int]:
        return [int(match[1]) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]


def _copy(connection: duckdb.DuckDBPyConnection, target: Path) -> int:
    path = str(target).replace("'", "''")
    connection.execute(f"ATTACH '{path}' AS snapshot (TYPE duckdb)")
    try:
        connection.begin()
        try:
            sequence = last_sequence(connection)
            connection.execute("COPY FROM DATABASE db TO snapshot")
            connection.commit()
        except duckdb.Error:
            with suppress(duckdb.Error):
                connection.rollback()
            raise
    finally:
        connection.execute("DETACH snapshot")
    return sequence
