"""The registry: a DuckDB file that says what is known, and a folder beside it that holds the adapters' files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Self

import duckdb

from rankloom_registry.artifacts import ArtifactStore
from rankloom_registry.errors import ArtifactError, SignatureError
from rankloom_registry.events.event import Event
from rankloom_registry.query import frames
from rankloom_registry.query.sandbox import run_query
from rankloom_registry.reader import Reader
from rankloom_registry.records import Adapter
from rankloom_registry.signatures import Signatures
from rankloom_registry.signing import Signer, Verifier
from rankloom_registry.store import access
from rankloom_registry.store.database import Rows
from rankloom_registry.store.opening import check_file, open_file
from rankloom_registry.store.recovery import RebuildReport, rebuild

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow


class Registry(Reader):
    """A registry file, opened only for the length of each call, so that several programs can use it in turn.

    Attributes:
        path: The resolved path of the file.
        artifacts: The adapters' files.
        signatures: Their signatures.
    """

    def __init__(
        self, path: Path, artifacts: Path | str, *, wait_s: float = 60.0, verifier: Verifier | None = None
    ) -> None:
        self.path = path
        self.artifacts = ArtifactStore(artifacts)
        self.signatures = Signatures(path)
        self._verifier = verifier
        self._wait_s = wait_s
        self._last = 0  # the number of the last event that this object has recorded

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        wait_s: float = 60.0,
        artifacts: str | None = None,
        verifier: Verifier | None = None,
    ) -> Self:
        """Open the registry at a path.

        Args:
            path: The file, `registry.duckdb` by habit.
            create: Make the file if it is missing, and bring one of an older version to the newest schema.
            wait_s: The longest wait for other programs that use it, in seconds; of this and of every later call.
            artifacts: Where a registry that is made here keeps the adapters' files: a URL that fsspec can reach, such
                as `s3://bucket/prefix`; by default a folder beside it. It is recorded: nobody needs to give it again.
            verifier: Who must have signed an adapter for `checkout` and `verify` to accept its files, such as
                `signing.Verifier("key.pub")`; by default nobody.

        Returns:
            The registry, also as a context manager; it holds nothing open between calls.

        Raises:
            RegistryNotFoundError: If there is no such file and `create` is not given.
            RegistryFormatError: If the file is not a registry of a known version, or keeps its files elsewhere.
            RegistryWriteError: If it cannot be made there.
            RegistryBusyError: If another program kept it for longer than `wait_s`.
        """
        resolved, place = open_file(path, create=create, wait_s=wait_s, artifacts=artifacts)
        return cls(resolved, place, wait_s=wait_s, verifier=verifier)

    @staticmethod
    def check(path: str | os.PathLike[str], *, wait_s: float = 60.0) -> None:
        """Check that something can be recorded at a path, before the work for it is done; nothing is made or changed.

        Args:
            path: The file, which may be missing or of an older version, as for `open` with `create`.
            wait_s: The longest wait for other programs that use it, in seconds.

        Raises:
            RegistryFormatError: If the file is not a registry of a known version.
            RegistryWriteError: If it cannot be made or written there.
            RegistryBusyError: If another program kept it for longer than `wait_s`.
        """
        check_file(path, wait_s=wait_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def __repr__(self) -> str:
        return f"Registry({str(self.path)!r})"

    def record(self, *events: Event) -> int:
        """Record events, all of them or none.

        Args:
            *events: In the order in which they happened. One whose `event_id` is already recorded is ignored.

        Returns:
            How many were new.

        Raises:
            EventError: If one speaks of something that is not recorded, or holds a value of the wrong type.
            RegistryBusyError: If another program kept the registry for too long.
            RegistryWriteError: If the file cannot be written.
        """
        if not events:
            return 0
        ack = access.record(self.path, events, timeout_s=self._wait_s)
        self._last = max(self._last, ack.sequence)
        return ack.applied

    def sql(self, query: str, *, limit: int | None = None, timeout_s: float = 30.0) -> Rows:
        """Run a query over the views; it can read them and nothing else.

        Args:
            query: One SELECT, FROM, WITH, DESCRIBE or SHOW statement, such as
                `select r, min(eval_loss) from adapters group by r`.
            limit: The most rows to return; None for all.
            timeout_s: How long it may run, in seconds.

        Returns:
            A dictionary a row: timestamps are aware and in UTC, JSON is parsed.

        Raises:
            QueryError: If it is another statement, or more than one, or it fails, or takes too long.
        """
        with self._reading() as connection:
            return run_query(connection, query, limit=limit, timeout_s=timeout_s)

    def arrow(self, query: str, *, timeout_s: float = 30.0) -> pyarrow.Table:
        """Run a query as `sql` does, into an Arrow table: timestamps are in UTC, JSON is text."""
        with self._reading() as connection:
            return frames.arrow(connection, query, timeout_s=timeout_s)

    def pandas(self, query: str, *, timeout_s: float = 30.0) -> pd.DataFrame:
        """Run a query as `sql` does, into a pandas frame: timestamps are in UTC, JSON is text."""
        return frames.pandas_frame(self.arrow(query, timeout_s=timeout_s))

    def polars(self, query: str, *, timeout_s: float = 30.0) -> pl.DataFrame:
        """Run a query as `sql` does, into a Polars frame: timestamps are in UTC, JSON is text."""
        return frames.polars_frame(self.arrow(query, timeout_s=timeout_s))

    def verify(self, adapter: Adapter) -> None:
        """Hash an adapter's files again.

        Args:
            adapter: As the registry returned it.

        Raises:
            ArtifactError: If its files are gone or changed; the message names what changed.
            SignatureError: If the registry was opened with a verifier, and the adapter is not signed as that asks.
        """
        self.artifacts.verify(_address(adapter))
        if self._verifier is not None:
            self.checkout(adapter)

    def checkout(self, adapter: Adapter) -> Path:
        """Give an adapter's files as a local folder that PEFT can load, each of them verified.

        Args:
            adapter: As the registry returned it.

        Raises:
            ArtifactError: If its files are gone or changed; the message names what changed.
            SignatureError: If the registry was opened with a verifier, and the adapter is not signed as that asks.
        """
        address = _address(adapter)
        folder = self.artifacts.checkout(address)
        if self._verifier is not None:
            try:
                self._verifier.verify(folder, signature=self.signatures.path(address))
            except SignatureError as error:
                raise SignatureError(f"adapter {adapter.adapter_id}: {error}") from error
        return folder

    def sign(self, adapter: Adapter, signer: Signer) -> Path:
        """Sign an adapter's files; the signature of whoever signed them before is replaced.

        Args:
            adapter: As the registry returned it.
            signer: Who signs.

        Returns:
            The file of the signature: beside the registry, for the files that `checkout` gives.

        Raises:
            ArtifactError: If its files are gone or changed; the message names what changed.
            RegistryWriteError: If the signature cannot be kept there.
            SignatureError: If they cannot be signed.
        """
        address = _address(adapter)
        return self.signatures.sign(address, self.artifacts.checkout(address), signer)

    def snapshot(self) -> Path:
        """Copy the whole registry into its snapshots folder, as it is now.

        Returns:
            A DuckDB database with the registry's views, which nobody changes any more; the second one after it, or the
            end of a search, removes it.

        Raises:
            RegistryWriteError: If it cannot be written.
        """
        return access.snapshot(self.path, timeout_s=self._wait_s).file

    @classmethod
    def rebuild(cls, path: str | os.PathLike[str], *, runs: Sequence[Path] = (), wait_s: float = 60.0) -> RebuildReport:
        """Make a registry again from its journal, what can still be read of its file, and the logs of lanes.

        Args:
            path: The file, which may be missing or damaged; it is set aside, never removed.
            runs: Folders of run folders, if not only the one beside the file.
            wait_s: The longest wait for other programs, in seconds.

        Returns:
            What it was made of.

        Raises:
            RegistryNotFoundError: If there is nothing to make it from.
            RegistryBusyError: If a search or another program kept it for longer than `wait_s`.
            RegistryWriteError: If it cannot be written.
        """
        return rebuild(Path(path).expanduser().resolve(), runs=runs, wait_s=wait_s)

    @contextmanager
    def held(self) -> Iterator[Reader]:
        """Hold the registry open for several questions: they see one state of it, and each is answered sooner.

        Yields:
            What reads it. Unless a search runs, nobody can write meanwhile, and this process cannot even read by other
            means: ask, and let go.

        Raises:
            RegistryBusyError: If another program kept it for too long.
        """
        with self._reading() as connection:
            yield _Held(self, connection)

    def _reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        # While an owner has the file this is a snapshot, which holds at least what this Registry has recorded.
        return access.reading(self.path, timeout_s=self._wait_s, at_least=self._last)


class _Held(Reader):
    """A registry while it is held open."""

    def __init__(self, registry: Registry, connection: duckdb.DuckDBPyConnection) -> None:
        self.path = registry.path
        self.artifacts = registry.artifacts
        self._connection = connection

    def _reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return nullcontext(self._connection)


def _address(adapter: Adapter) -> str:
    if adapter.status != "available":
        raise ArtifactError(f"adapter {adapter.adapter_id} is {adapter.status}: its files were not kept")
    return adapter.artifact_sha256
