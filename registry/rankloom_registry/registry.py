"""The registry: a DuckDB file that says what is known, and a folder beside it that holds the adapters' files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self, TypeVar

from rankloom_registry.artifacts import ArtifactStore
from rankloom_registry.database import STATEMENT_ERRORS, Rows, attached, fetch, first_line
from rankloom_registry.errors import (
    AdapterNotFoundError,
    ArtifactError,
    BaseNotFoundError,
    EventError,
    QueryError,
    SearchNotFoundError,
)
from rankloom_registry.event import Event
from rankloom_registry.fold import append
from rankloom_registry.opening import open_file
from rankloom_registry.query import build_selection, check_limit
from rankloom_registry.records import (
    Adapter,
    AliasRecord,
    BaseRecord,
    EvaluationRecord,
    EventRecord,
    PromotionRecord,
    SearchRecord,
    StepMetrics,
    TrialRecord,
)
from rankloom_registry.references import choose
from rankloom_registry.sandbox import run_query

_Record = TypeVar("_Record")
_ADAPTER_COLUMNS = tuple(field.name for field in fields(Adapter))


class Registry:
    """A registry file, opened only for the length of each call, so that several programs can use it in turn.

    Attributes:
        path: The resolved path of the file.
        artifacts: The adapters' files.
    """

    def __init__(self, path: Path, artifacts: Path, *, wait_s: float = 60.0) -> None:
        self.path = path
        self.artifacts = ArtifactStore(artifacts)
        self._wait_s = wait_s

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = False, wait_s: float = 60.0) -> Self:
        """Open the registry at a path.

        Args:
            path: The file, `registry.duckdb` by habit.
            create: Make the file if it is missing, and bring one of an older version to the newest schema.
            wait_s: The longest wait for other programs that use it, in seconds; of this and of every later call.

        Returns:
            The registry, also as a context manager; it holds nothing open between calls.

        Raises:
            RegistryNotFoundError: If there is no such file and `create` is not given.
            RegistryFormatError: If the file is not a registry of a known version.
            RegistryWriteError: If it cannot be made there.
            RegistryBusyError: If another program kept it for longer than `wait_s`.
        """
        resolved, artifacts = open_file(path, create=create, wait_s=wait_s)
        return cls(resolved, artifacts, wait_s=wait_s)

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
        with attached(self.path, write=True, timeout_s=self._wait_s) as connection:
            try:
                connection.begin()
                applied = append(connection, events)
                connection.commit()
            except STATEMENT_ERRORS as error:
                raise EventError(f"cannot record {events[0].kind}: {first_line(error)}; correct the event") from error
        return applied

    def searches(self) -> list[SearchRecord]:
        """All searches, newest first."""
        return self._read(SearchRecord, "FROM searches ORDER BY created_at DESC, search_id")

    def search(self, ref: str) -> SearchRecord:
        """The search that a reference means.

        Args:
            ref: Its id, a prefix of the id that only it has, or its name if only it has that.

        Raises:
            SearchNotFoundError: If it means none, or several.
        """
        found = self._read(
            SearchRecord, "FROM searches WHERE search_id = ? OR starts_with(search_id, ?) OR name = ?", [ref, ref, ref]
        )
        return choose(
            ref,
            found,
            what="search",
            identity=lambda search: (search.search_id, search.name),
            known=lambda: [(search.search_id, search.name) for search in self.searches()],
            error=SearchNotFoundError,
        )

    def trials(self, search: str) -> list[TrialRecord]:
        """The trials of a search, by number.

        Args:
            search: A reference as for `search`.

        Raises:
            SearchNotFoundError: If the reference means no search, or several.
        """
        search_id = self.search(search).search_id
        return self._read(TrialRecord, "FROM trials WHERE search_id = ? ORDER BY number, trial_id", [search_id])

    def step_metrics(self, trial_id: str) -> list[StepMetrics]:
        """What a trial reported, by step; nothing for a trial that is not recorded."""
        return self._read(StepMetrics, "FROM step_metrics WHERE trial_id = ? ORDER BY step", [trial_id])

    def adapters(
        self, where: str | None = None, order_by: str | None = None, limit: int | None = None
    ) -> list[Adapter]:
        """The adapters that pass a filter, newest first unless ordered otherwise.

        Args:
            where: Such as `eval_loss < 2 and r <= 16`, over the columns of the view `adapters`.
            order_by: Such as `eval_loss, created_at desc`; rows without a value come last.
            limit: The most adapters to return; None for all.

        Raises:
            QueryError: If the filter or ordering holds anything but columns, literals and comparisons.
        """
        query, parameters = build_selection(where, order_by, limit, _ADAPTER_COLUMNS)
        try:
            return self._read(Adapter, f"FROM adapters {query}", parameters, limit)
        except STATEMENT_ERRORS as error:
            reason = first_line(error)
            raise QueryError(
                f"the filter {where!r} fails: {reason}; compare a column with values of its type"
            ) from error

    def adapter(self, ref: str) -> Adapter:
        """The adapter that a reference means.

        Args:
            ref: Its id, 4 or more characters with which only its id begins, its name if only it has that, or
                `name@alias`.

        Raises:
            AdapterNotFoundError: If it means none, or several.
        """
        name, at, alias = ref.partition("@")
        if at:
            found = self._read(
                Adapter,
                "FROM adapters WHERE adapter_id = (SELECT adapter_id FROM aliases WHERE name = ? AND alias = ?)",
                [name, alias],
            )
        else:
            prefix = ref if len(ref) >= 4 else None
            found = self._read(
                Adapter,
                "FROM adapters WHERE adapter_id = ? OR starts_with(adapter_id, ?) OR name = ?",
                [ref, prefix, ref],
            )
        return choose(
            ref,
            found,
            what="adapter",
            identity=lambda adapter: (adapter.adapter_id, adapter.name),
            known=lambda: (
                [(adapter.adapter_id, adapter.name) for adapter in self.adapters()]
                + [(f"{alias.name}@{alias.alias}", alias.name) for alias in self.aliases()]
            ),
            error=AdapterNotFoundError,
        )

    def base(self, content_root: str) -> BaseRecord:
        """The base model with this content.

        Args:
            content_root: As `fingerprint_base` returns it.

        Raises:
            BaseNotFoundError: If none is recorded.
        """
        found = self._read(BaseRecord, "FROM bases WHERE content_root = ?", [content_root])
        if not found:
            raise BaseNotFoundError(f"no base model with the content root {content_root!r} is recorded; see bases()")
        return found[0]

    def bases(self) -> list[BaseRecord]:
        """All base models, newest first."""
        return self._read(BaseRecord, "FROM bases ORDER BY created_at DESC, content_root")

    def evaluations(self, adapter_id: str) -> list[EvaluationRecord]:
        """The measurements of an adapter, newest first."""
        query = "FROM evaluations WHERE adapter_id = ? ORDER BY created_at DESC, evaluation_id"
        return self._read(EvaluationRecord, query, [adapter_id])

    def promotions(self, adapter_id: str | None = None) -> list[PromotionRecord]:
        """The promotions of an adapter, or of all, newest first."""
        query = "FROM promotions WHERE adapter_id = coalesce(?, adapter_id) ORDER BY created_at DESC, promotion_id"
        return self._read(PromotionRecord, query, [adapter_id])

    def aliases(self, name: str | None = None) -> list[AliasRecord]:
        """The aliases of a name, or all, newest first."""
        query = "FROM aliases WHERE name = coalesce(?, name) ORDER BY created_at DESC, name, alias"
        return self._read(AliasRecord, query, [name])

    def events(self, subject: str | None = None, limit: int = 200) -> list[EventRecord]:
        """What was recorded, last first.

        Args:
            subject: The id of a search, a trial, an adapter or a base; None for all.
            limit: The most events to return.
        """
        check_limit(limit)
        query = "FROM events WHERE subject = coalesce(?, subject) ORDER BY sequence DESC"
        return self._read(EventRecord, query, [subject], limit)

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
        return run_query(self.path, query, limit=limit, timeout_s=timeout_s, wait_s=self._wait_s)

    def verify(self, adapter: Adapter) -> None:
        """Hash an adapter's files again.

        Args:
            adapter: As the registry returned it.

        Raises:
            ArtifactError: If its files are gone or changed; the message names what changed.
        """
        if adapter.status != "available":
            raise ArtifactError(f"adapter {adapter.adapter_id} is {adapter.status}: its files were not kept")
        self.artifacts.verify(adapter.artifact_sha256)

    def _read(
        self, record: type[_Record], query: str, parameters: Sequence[Any] = (), limit: int | None = None
    ) -> list[_Record]:
        names = ", ".join(f'"{field.name}"' for field in fields(record))  # type: ignore[arg-type]
        with attached(self.path, write=False, timeout_s=self._wait_s) as connection:
            rows = fetch(connection, f"SELECT {names} {query}", parameters, limit)
        if record is Adapter:
            for row in rows:
                row["aliases"] = tuple(row["aliases"])
                row["artifact_path"] = row["artifact_path"] and self.path.parent / row["artifact_path"]
        return [record(**row) for row in rows]
