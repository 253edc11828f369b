"""Every read of the registry: one short opening a page, remembered until the file changes.

The live database file is only ever looked at with `os.stat` here: opening and closing it by path in a process that
holds it would drop DuckDB's lock without a word.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path

import streamlit as st

from rankloom.evaluation.report import Report, load_report, report_file
from rankloom_dashboard.launch import REGISTRY_VARIABLE
from rankloom_registry import (
    Adapter,
    BaseNotFoundError,
    BaseRecord,
    EvaluationRecord,
    EventRecord,
    PromotionRecord,
    Registry,
    SearchRecord,
    StepMetrics,
    Summary,
    TrialRecord,
)

ADAPTERS_SHOWN = 1000
_OFFERED = 300  # of what a page offers to choose from
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
    """One adapter with all that was recorded about it."""

    adapter: Adapter
    base: BaseRecord | None
    prior: TrialRecord | None
    metrics: list[StepMetrics]
    evaluations: list[EvaluationRecord]
    promotions: list[PromotionRecord]
    events: list[EventRecord]


def registry_path() -> Path:
    """Returns the registry file that this server was started for."""
    return Path(os.environ.get(REGISTRY_VARIABLE) or "registry.duckdb").absolute()


def glance() -> Glance:
    """Reads what the registry holds."""
    return _glance(*_key())


def summary() -> Summary:
    """Reads how much the registry holds, and the latest of everything."""
    return _summary(*_key())


def search_details(ref: str) -> SearchDetails:
    """Reads one search by id, id prefix or name."""
    return _search_details(*_key(), ref)


def adapter_details(ref: str) -> AdapterDetails:
    """Reads one adapter by id, id prefix, name or name@alias."""
    return _adapter_details(*_key(), ref)


def available_adapters() -> list[Adapter]:
    """Reads the newest adapters that have files, a few hundred of them."""
    return _available_adapters(*_key())


def evaluations() -> list[EvaluationRecord]:
    """Reads the newest evaluations of all adapters, a few hundred of them."""
    return _evaluations(*_key())


def report(evaluation_id: str) -> Report:
    """Reads what was kept of an evaluation row by row; shared by all pages, so nobody may change it.

    Raises:
        DataError: It is not there.
    """
    file = report_file(registry_path(), evaluation_id)
    return _report(file, _stamp(file))


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


@st.cache_data(ttl=60, max_entries=8, show_spinner=False)
def _summary(path: str, stamp: _Stamp) -> Summary:
    return Registry.open(path, wait_s=WAIT_SECONDS).summary()


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


@st.cache_data(ttl=60, max_entries=8, show_spinner=False)
def _available_adapters(path: str, stamp: _Stamp) -> list[Adapter]:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        return registry.adapters("status = 'available'", limit=_OFFERED)


@st.cache_data(ttl=60, max_entries=8, show_spinner=False)
def _evaluations(path: str, stamp: _Stamp) -> list[EvaluationRecord]:
    columns = ", ".join(field.name for field in fields(EvaluationRecord))
    query = f"SELECT {columns} FROM evaluations ORDER BY created_at DESC, evaluation_id"
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        return [EvaluationRecord(**row) for row in registry.sql(query, limit=_OFFERED)]


@st.cache_resource(max_entries=4, show_spinner=False)
def _report(file: Path, stamp: tuple[int, int]) -> Report:
    return load_report(file)


@st.cache_data(ttl=60, max_entries=64, show_spinner=False)
def _adapter_details(path: str, stamp: _Stamp, ref: str) -> AdapterDetails:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        adapter = registry.adapter(ref)
        trials = registry.trials(adapter.search_id) if adapter.search_id else []
        try:
            base = registry.base(adapter.base_content_root)
        except BaseNotFoundError:
            base = None  # an imported adapter may name a base that this registry has not seen
        return AdapterDetails(
            adapter=adapter,
            base=base,
            prior=next((trial for trial in trials if trial.number == 0), None),
            metrics=registry.step_metrics(adapter.trial_id) if adapter.trial_id else [],
            evaluations=registry.evaluations(adapter.adapter_id),
            promotions=registry.promotions(adapter.adapter_id),
            events=registry.events(adapter.adapter_id),
        )
