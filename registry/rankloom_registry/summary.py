"""A registry at a glance: how much it holds, and the latest of everything, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

import duckdb

from rankloom_registry.records import BaseRecord, PromotionRecord, SearchRecord
from rankloom_registry.store.database import select

_Record = TypeVar("_Record")
_COUNTS = """
FROM (SELECT count(*) AS bases FROM store.bases), (SELECT count(*) AS searches FROM store.searches),
    (SELECT count(*) AS trials, count(*) FILTER (WHERE status = 'failed') AS failed_trials FROM store.trials),
    (SELECT count(*) AS adapters, count(*) FILTER (WHERE status = 'available') AS available FROM store.adapters),
    (SELECT count(*) FILTER (WHERE status = 'done') AS promotions,
        count(*) FILTER (WHERE status = 'refused') AS refused_promotions FROM store.promotions)"""
_FAILED = """
FROM (SELECT t.*, s.name AS search_name FROM store.trials t JOIN store.searches s USING (search_id)
    WHERE t.status = 'failed') ORDER BY ended_at DESC, trial_id LIMIT ?"""
_IN_USE = """
FROM (SELECT l.*, a.eval_loss, a.base_identity FROM store.aliases l JOIN store.adapters a USING (adapter_id))
ORDER BY created_at DESC, name, alias LIMIT ?"""
# By the metric of their search, those whose files are there; a NaN or an infinity is the best of nothing.
_BEST = """
FROM (
    SELECT a.search_id, a.adapter_id, a.name,
        CASE s.metric WHEN 'eval_loss' THEN a.eval_loss WHEN 'train_loss' THEN a.train_loss END AS value, s.mode
    FROM store.adapters a JOIN store.searches s USING (search_id)
    WHERE a.status = 'available' AND a.search_id IN (SELECT unnest(?)))
WHERE isfinite(value)
QUALIFY row_number() OVER (
    PARTITION BY search_id ORDER BY CASE mode WHEN 'min' THEN value ELSE -value END, adapter_id) = 1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many of each there are; `available` are the adapters whose files were kept."""

    bases: int
    searches: int
    trials: int
    failed_trials: int
    adapters: int
    available: int
    promotions: int
    refused_promotions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedTrial:
    """A trial that failed, and what it said."""

    trial_id: str
    number: int
    search_id: str
    search_name: str
    message: str
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BestAdapter:
    """The adapter of a search that is the best by its metric, of those whose files were kept."""

    search_id: str
    adapter_id: str
    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InUse:
    """What `name@alias` means now, and since when."""

    name: str
    alias: str
    adapter_id: str
    eval_loss: float | None
    base_identity: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A registry at a glance; each list has its newest first and is cut.

    Attributes:
        counts: How many of everything there are.
        running: The searches that run.
        searches: The searches.
        best: The best adapter of each of these that has one, by `search_id`.
        bases: The bases.
        promotions: The promotions, whatever became of them.
        in_use: The aliases.
        failed: The trials that failed.
    """

    counts: Counts
    running: list[SearchRecord]
    searches: list[SearchRecord]
    best: dict[str, BestAdapter]
    bases: list[BaseRecord]
    promotions: list[PromotionRecord]
    in_use: list[InUse]
    failed: list[FailedTrial]


def read_summary(connection: duckdb.DuckDBPyConnection, limit: int) -> Summary:
    """Read the summary of a registry.

    Args:
        connection: An open connection whose default database is the registry's.
        limit: The most rows of each list.
    """

    def read(record: type[_Record], query: str, parameters: Sequence[Any] = (limit,)) -> list[_Record]:
        # The records are dataclasses; their fields are the columns.
        columns = {field.name: "datetime" in str(field.type) for field in fields(record)}  # type: ignore[arg-type]
        return [record(**row) for row in select(connection, columns, query, parameters)]

    (counts,) = read(Counts, _COUNTS, ())
    searches = read(SearchRecord, "FROM searches ORDER BY created_at DESC, search_id LIMIT ?")
    best = read(BestAdapter, _BEST, [[search.search_id for search in searches]]) if searches else []
    return Summary(
        counts=counts,
        running=read(SearchRecord, "FROM searches WHERE status = 'running' ORDER BY created_at DESC LIMIT ?"),
        searches=searches,
        best={adapter.search_id: adapter for adapter in best},
        bases=read(BaseRecord, "FROM bases ORDER BY created_at DESC, content_root LIMIT ?"),
        promotions=read(PromotionRecord, "FROM promotions ORDER BY created_at DESC, promotion_id LIMIT ?"),
        in_use=read(InUse, _IN_USE),
        failed=read(FailedTrial, _FAILED),
    )
