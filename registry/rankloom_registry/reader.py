"""What can be read from a registry, wherever the rows come from: the file itself, or a snapshot of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from rankloom_registry.artifacts import ArtifactStore
from rankloom_registry.errors import AdapterNotFoundError, BaseNotFoundError, QueryError, SearchNotFoundError
from rankloom_registry.lineage import Lineage
from rankloom_registry.query.filters import check_limit, filter_adapters, select_adapters
from rankloom_registry.query.spans import SPANS
from rankloom_registry.records import (
    Adapter,
    AliasMove,
    AliasRecord,
    BaseRecord,
    EvaluationRecord,
    EventRecord,
    PromotionRecord,
    SearchRecord,
    StepMetrics,
    TrialRecord,
    TrialSpan,
)
from rankloom_registry.references import choose
from rankloom_registry.store.database import STATEMENT_ERRORS, first_line, select
from rankloom_registry.store.views import trials_of
from rankloom_registry.summary import Summary, read_summary

_Record = TypeVar("_Record")
_NEAR = 20
_LONGEST = 2 * 128 + 1  # characters: of two names and the '@' between them
_ADAPTER_COLUMNS = tuple(field.name for field in fields(Adapter))


class Reader(ABC):
    """The questions that a registry answers.

    Attributes:
        path: The resolved path of the registry's file.
        artifacts: The adapters' files.
    """

    path: Path
    artifacts: ArtifactStore

    @abstractmethod
    def _reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Give a connection whose default database holds the registry's views, for one question."""

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
            near=lambda: self._near(ref, "search_id FROM store.searches", "name FROM store.searches"),
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
        mine = trials_of("(FROM store.trials WHERE search_id = ?)")
        return self._read(TrialRecord, f"FROM ({mine}) ORDER BY number, trial_id", [search_id])

    def trial_spans(self, search: str) -> list[TrialSpan]:
        """Which trial of a search held which slot of which lane, and when: its attempts, in the order they began.

        Args:
            search: A reference as for `search`.

        Raises:
            SearchNotFoundError: If the reference means no search, or several.
        """
        return self._read(TrialSpan, f"FROM ({SPANS}) ORDER BY started_at, number", [self.search(search).search_id])

    def step_metrics(self, trial_id: str) -> list[StepMetrics]:
        """What a trial reported, by step; nothing for a trial that is not recorded."""
        return self._read(StepMetrics, "FROM step_metrics WHERE trial_id = ? ORDER BY step", [trial_id])

    def adapters(
        self,
        where: str | None = None,
        order_by: str | None = None,
        limit: int | None = None,
        *,
        tag: str | None = None,
        offset: int = 0,
    ) -> list[Adapter]:
        """The adapters that pass a filter, newest first unless ordered otherwise.

        Args:
            where: Such as `eval_loss < 2 and r <= 16`, over the columns of the view `adapters`.
            order_by: Such as `eval_loss, created_at desc`; rows without a value come last.
            limit: The most adapters to return; None for all.
            tag: Only those that have this tag.
            offset: How many of the first to leave out, for the pages after the first.

        Raises:
            QueryError: If the filter or ordering holds anything but columns, literals and comparisons.
        """
        query, parameters = select_adapters(where, order_by, limit, tag, _ADAPTER_COLUMNS, offset=offset)
        with _failing(where):
            return self._read(Adapter, query, parameters)

    def count_adapters(self, where: str | None = None, *, tag: str | None = None) -> int:
        """How many adapters pass a filter; it is given, and fails, as for `adapters`."""
        query, parameters = filter_adapters(where, tag, _ADAPTER_COLUMNS)
        with _failing(where), self._reading() as connection:
            rows = connection.execute(f"SELECT count(*) {query}", parameters).fetchall()
        return int(rows[0][0])

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
            near=lambda: self._near(
                ref,
                "adapter_id FROM store.adapters",
                "name FROM store.adapters",
                "name || '@' || alias FROM store.aliases WHERE adapter_id IS NOT NULL",
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

    def base_leaves(self, content_root: str) -> dict[str, str]:
        """The hash of each tensor of a base model, by name; nothing if it was recorded without them."""
        query = "SELECT name, leaf FROM base_tensors WHERE content_root = ? ORDER BY name"
        with self._reading() as connection:
            return dict(connection.execute(query, [content_root]).fetchall())

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

    def alias_history(self, name: str, alias: str | None = None) -> list[AliasMove]:
        """The moves of an alias of a name, or of all its aliases, last first."""
        query = "FROM alias_moves WHERE name = ? AND alias = coalesce(?, alias) ORDER BY sequence DESC"
        return self._read(AliasMove, query, [name, alias])

    def lineage(self, ref: str) -> Lineage:
        """Where an adapter came from, and what became of it.

        Args:
            ref: A reference as for `adapter`.

        Raises:
            AdapterNotFoundError: If it means none, or several.
        """
        adapter = self.adapter(ref)
        id_, trial_id, search_id = adapter.adapter_id, adapter.trial_id, adapter.search_id
        moves = "FROM alias_moves WHERE ? IN (adapter_id, previous) ORDER BY sequence DESC"
        return Lineage(
            adapter=adapter,
            base=self.base(adapter.base_content_root),
            search=None if search_id is None else self.search(search_id),
            trial=next(iter(self._read(TrialRecord, "FROM trials WHERE trial_id = ?", [trial_id])), None),
            evaluations=self.evaluations(id_),
            promotions=self.promotions(id_),
            alias_moves=self._read(AliasMove, moves, [id_]),
            events=self.events(id_),
        )

    def summary(self, limit: int = 8) -> Summary:
        """The registry at a glance: how much it holds, and the latest of everything.

        Args:
            limit: The most rows of each list.
        """
        check_limit(limit)
        with self._reading() as connection:
            return read_summary(connection, limit)

    def events(self, subject: str | None = None, limit: int = 200) -> list[EventRecord]:
        """What was recorded, last first.

        Args:
            subject: The id of a search, a trial, an adapter or a base; None for all.
            limit: The most events to return.
        """
        check_limit(limit)
        query = f"FROM events WHERE subject = coalesce(?, subject) ORDER BY sequence DESC LIMIT {limit}"
        return self._read(EventRecord, query, [subject])

    def _near(self, ref: str, *sources: str) -> list[str]:
        """The words most like a reference, a few of each source: the database compares, as there may be millions."""
        most = f"ORDER BY jaro_winkler_similarity(word, ?) DESC, word LIMIT {_NEAR}"
        query = " UNION ALL ".join(f"(FROM (SELECT DISTINCT {source}) words(word) {most})" for source in sources)
        with self._reading() as connection:
            return [word for (word,) in connection.execute(query, [ref[:_LONGEST]] * len(sources)).fetchall()]

    def _read(self, record: type[_Record], query: str, parameters: Sequence[Any] = ()) -> list[_Record]:
        with self._reading() as connection:
            rows = select(connection, _columns(record), query, parameters)
        if record is Adapter:
            root = self.artifacts.root if isinstance(self.artifacts.root, Path) else None
            for row in rows:
                row["aliases"], row["tags"] = tuple(row["aliases"]), tuple(row["tags"])
                # Artifacts at a URL have no folder to name: Registry.checkout brings one.
                folder = root / row["artifact_path"] if root is not None and row["artifact_path"] else None
                row["artifact_path"] = folder
        return [record(**row) for row in rows]


@contextmanager
def _failing(where: str | None) -> Iterator[None]:
    try:
        yield
    except STATEMENT_ERRORS as error:
        reason = first_line(error)
        raise QueryError(f"the filter {where!r} fails: {reason}; compare a column with values of its type") from error


def _columns(record: type[Any]) -> dict[str, bool]:
    """The columns that a record is read from, and which of them are points in time."""
    return {field.name: "datetime" in str(field.type) for field in fields(record)}
