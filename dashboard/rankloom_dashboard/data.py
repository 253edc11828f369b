"""Every read of the registry: one short opening a page, remembered until the file changes.

The live database file is only ever looked at with `os.stat` here: opening and closing it by path in a process that
holds it would drop DuckDB's lock without a word.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Literal

import streamlit as st

from rankloom.export_config import as_python, as_yaml
from rankloom_dashboard.filters import AMONG
from rankloom_dashboard.launch import REGISTRY_VARIABLE
from rankloom_registry import (
    Adapter,
    AdapterNotFoundError,
    BaseNotFoundError,
    BaseRecord,
    EvaluationRecord,
    EventRecord,
    Lineage,
    PromotionRecord,
    Registry,
    SearchRecord,
    StepMetrics,
    TrialRecord,
)

ADAPTERS_SHOWN = 1000
NEWEST = 200  # adapters that a page offers to choose from; any other can be typed
WAIT_SECONDS = 10.0  # a page says that the registry is busy rather than hang
_Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What the registry holds, newest first."""

    searches: list[SearchRecord]
    adapters: list[Adapter]
    bases: list[BaseRecord]
    promotions: list[PromotionRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchDetails:
    """One search with its trials by number and their learning curves by trial_id."""

    search: SearchRecord
    trials: list[TrialRecord]
    metrics: dict[str, list[StepMetrics]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDetails:
    """One adapter with all that was recorded about it; `prior` is trial 0 of its search."""

    adapter: Adapter
    base: BaseRecord | None
    prior: TrialRecord | None
    metrics: list[StepMetrics]
    evaluations: list[EvaluationRecord]
    promotions: list[PromotionRecord]
    events: list[EventRecord]
    lineage: Lineage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facets:
    """What adapters can be filtered by: the values of some columns, and the tags, the most frequent first."""

    values: dict[str, tuple[str, ...]]
    tags: tuple[str, ...]


def registry_path() -> Path:
    """Returns the registry file that this server was started for."""
    return Path(os.environ.get(REGISTRY_VARIABLE) or "registry.duckdb").absolute()


def glance() -> Glance:
    """Reads what the registry holds."""
    return _glance(*_key())


def search_details(ref: str) -> SearchDetails:
    """Reads one search by id, id prefix or name."""
    return _search_details(*_key(), ref)


def adapter_details(ref: str) -> AdapterDetails:
    """Reads one adapter by id, id prefix, name or name@alias."""
    return _adapter_details(*_key(), ref)


def adapter_counts(where: str = "", *, tag: str | None = None) -> tuple[int, int]:
    """Reads how many adapters pass a filter, as for `adapters_page`, and how many there are."""
    return _adapter_counts(*_key(), where.strip() or None, tag or None)


def adapters_page(
    where: str = "", *, tag: str | None = None, order_by: str = "", limit: int = NEWEST, offset: int = 0
) -> list[Adapter]:
    """Reads one page of the adapters that pass a filter.

    Args:
        where: As for `Registry.adapters`; empty for all.
        tag: Only those that have it.
        order_by: As for `Registry.adapters`; empty for the newest first.
        limit: The most adapters on a page.
        offset: How many stand on the pages before it.

    Raises:
        QueryError: The filter or the ordering breaks its rule.
    """
    return _adapters_page(*_key(), where.strip() or None, tag or None, order_by.strip() or None, limit, offset)


def adapters_named(refs: Sequence[str]) -> tuple[list[Adapter], list[str]]:
    """Reads the adapters that references mean, each once, and says of the other references why they mean none."""
    return _adapters_named(*_key(), tuple(refs))


def facets() -> Facets:
    """Reads what adapters can be filtered by."""
    return _facets(*_key())


def configuration(adapter: Adapter, form: Literal["yaml", "python"]) -> str:
    """Writes an adapter's configuration as `rankloom adapters export-config` does.

    Raises:
        RankloomError: It cannot be written in that form.
        SpaceError: No search space can hold it.
        ArtifactError: Its files are gone or changed.
    """
    return _configuration(*_key(), adapter.adapter_id, form)


def verify(adapter: Adapter) -> None:
    """Hashes the adapter's files again; never remembered, since it asks about the files and not about the database."""
    with Registry.open(registry_path(), wait_s=WAIT_SECONDS) as registry:
        registry.verify(adapter)


def _key() -> tuple[str, _Stamp]:
    path = registry_path()
    return str(path), tuple(_stamp(file) for file in (path, path.with_name(f"{path.name}.wal")))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


@st.cache_data(ttl=60, max_entries=8, show_spinner=False)
def _glance(path: str, stamp: _Stamp) -> Glance:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        return Glance(
            searches=registry.searches(),
            adapters=registry.adapters(limit=ADAPTERS_SHOWN),
            bases=registry.bases(),
            promotions=registry.promotions(),
        )


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _search_details(path: str, stamp: _Stamp, ref: str) -> SearchDetails:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        search = registry.search(ref)
        trials = registry.trials(search.search_id)
        metrics = _metrics_of(registry, search.search_id)
    return SearchDetails(search=search, trials=trials, metrics=metrics)


def _metrics_of(registry: Registry, search_id: str) -> dict[str, list[StepMetrics]]:
    """Reads the curves of all trials at once: a read a trial would take seconds for a search of a hundred."""
    columns = ", ".join(field.name for field in fields(StepMetrics))
    literal = search_id.replace("'", "''")
    rows = registry.sql(
        f"SELECT {columns} FROM step_metrics "
        f"WHERE trial_id IN (SELECT trial_id FROM trials WHERE search_id = '{literal}') ORDER BY trial_id, step"
    )
    points = (StepMetrics(**row) for row in rows)
    return {trial_id: list(mine) for trial_id, mine in groupby(points, key=lambda point: point.trial_id)}


@st.cache_data(ttl=60, max_entries=64, show_spinner=False)
def _adapter_details(path: str, stamp: _Stamp, ref: str) -> AdapterDetails:
    with Registry.open(path, wait_s=WAIT_SECONDS).held() as reader:
        adapter = reader.adapter(ref)
        trials = reader.trials(adapter.search_id) if adapter.search_id else []
        try:
            lineage = reader.lineage(adapter.adapter_id)
        except BaseNotFoundError:
            lineage = None  # an imported adapter may name a base that this registry has not seen
        return AdapterDetails(
            adapter=adapter,
            base=lineage.base if lineage else None,
            prior=next((trial for trial in trials if trial.number == 0), None),
            metrics=reader.step_metrics(adapter.trial_id) if adapter.trial_id else [],
            evaluations=reader.evaluations(adapter.adapter_id),
            promotions=reader.promotions(adapter.adapter_id),
            events=reader.events(adapter.adapter_id),
            lineage=lineage,
        )


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _adapter_counts(path: str, stamp: _Stamp, where: str | None, tag: str | None) -> tuple[int, int]:
    with Registry.open(path, wait_s=WAIT_SECONDS).held() as reader:
        return reader.count_adapters(where, tag=tag), reader.count_adapters()


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _adapters_page(
    path: str, stamp: _Stamp, where: str | None, tag: str | None, order_by: str | None, limit: int, offset: int
) -> list[Adapter]:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        return registry.adapters(where, order_by, limit, tag=tag, offset=offset)


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _adapters_named(path: str, stamp: _Stamp, refs: tuple[str, ...]) -> tuple[list[Adapter], list[str]]:
    found: dict[str, Adapter] = {}
    unknown: list[str] = []
    with Registry.open(path, wait_s=WAIT_SECONDS).held() as reader:
        for ref in refs:
            try:
                adapter = reader.adapter(ref)
            except AdapterNotFoundError as error:
                unknown.append(str(error))
            else:
                found[adapter.adapter_id] = adapter
    return list(found.values()), unknown


@st.cache_data(ttl=60, max_entries=4, show_spinner=False)
def _facets(path: str, stamp: _Stamp) -> Facets:
    each = [f"SELECT '{column}' AS kind, {column} AS value FROM adapters" for column in AMONG]
    every = " UNION ALL ".join([*each, "SELECT 'tag', unnest(tags) FROM adapters"])
    counted = f"SELECT kind, value, count(*) AS n FROM ({every}) WHERE value IS NOT NULL GROUP BY ALL"
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        rows = registry.sql(f"SELECT kind, value FROM ({counted}) ORDER BY kind, n DESC, value")
    found = {kind: tuple(row["value"] for row in rows if row["kind"] == kind) for kind in (*AMONG, "tag")}
    return Facets(tags=found.pop("tag"), values=found)


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _configuration(path: str, stamp: _Stamp, adapter_id: str, form: Literal["yaml", "python"]) -> str:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        adapter = registry.adapter(adapter_id)
        if form == "yaml":
            return as_yaml(registry, adapter)
        return as_python(adapter, registry.checkout(adapter) if adapter.status == "available" else None)
