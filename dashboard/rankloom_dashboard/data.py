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

from rankloom import control
from rankloom_dashboard.launch import REGISTRY_VARIABLE
from rankloom_registry import (
    Adapter,
    BaseNotFoundError,
    BaseRecord,
    EvaluationRecord,
    EventRecord,
    Lineage,
    PromotionRecord,
    Registry,
    SearchRecord,
    StepMetrics,
    Summary,
    TrialRecord,
    TrialSpan,
)
from rankloom_registry.artifacts.place import WEIGHTS
from rankloom_registry.errors import ArtifactError
from rankloom_registry.formats.safetensors import read_safetensors_header
from rankloom_registry.store.snapshots import POINTER, Snapshots

WAIT_SECONDS = 10.0  # a page says that the registry is busy rather than hang
Stamp = tuple[tuple[int, int], ...]


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


def registry_path() -> Path:
    """Returns the registry file that this server was started for, past links: what belongs to it lies beside it."""
    return Path(os.environ.get(REGISTRY_VARIABLE) or "registry.duckdb").resolve()


def summary() -> Summary:
    """Reads how much the registry holds, and the latest of everything."""
    return _summary(*key())


def searches() -> list[SearchRecord]:
    """Reads all searches, newest first."""
    return _searches(*key())


def stamp() -> object:
    """Returns what is another thing as soon as the registry holds, or publishes, anything new; looks at files only."""
    return key()


def status_now(search: SearchRecord) -> str:
    """Returns the status of a search; that of one whose process died without a word is `interrupted`."""
    if search.status != "running":
        return search.status
    with Registry.open(registry_path(), wait_s=WAIT_SECONDS) as registry:
        return control.status_now(registry, search)


def trial_spans(search_id: str) -> list[TrialSpan]:
    """Reads which trial of a search held which slot of which lane, and when."""
    return _trial_spans(*key(), search_id)


def rank_bytes(base_content_root: str) -> dict[str, float]:
    """Reads how many bytes of weights one rank takes, by target modules, from adapters on a base that are kept here."""
    return _rank_bytes(*key(), base_content_root)


def search_details(ref: str) -> SearchDetails:
    """Reads one search by id, id prefix or name."""
    return _search_details(*key(), ref)


def adapter_details(ref: str) -> AdapterDetails:
    """Reads one adapter by id, id prefix, name or name@alias."""
    return _adapter_details(*key(), ref)


def key() -> tuple[str, Stamp]:
    """Returns what a read is remembered by: the registry, and when its files changed last."""
    path = registry_path()
    # While a search keeps the file its snapshots are read, and one can come later than the last change of the file.
    pointer = Snapshots(path).folder / POINTER
    return str(path), tuple(_stamp(file) for file in (path, path.with_name(f"{path.name}.wal"), pointer))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


@st.cache_data(ttl=60, max_entries=8, show_spinner=False)
def _summary(path: str, stamp: Stamp) -> Summary:
    return Registry.open(path, wait_s=WAIT_SECONDS).summary()


@st.cache_data(ttl=60, max_entries=8, show_spinner=False)
def _searches(path: str, stamp: Stamp) -> list[SearchRecord]:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        return registry.searches()


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _trial_spans(path: str, stamp: Stamp, search_id: str) -> list[TrialSpan]:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        return registry.trial_spans(search_id)


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _rank_bytes(path: str, stamp: Stamp, base_content_root: str) -> dict[str, float]:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        if not isinstance(registry.artifacts.root, Path):
            return {}  # at a URL: a page must not wait for it
        literal = base_content_root.replace("'", "''")
        rows = registry.sql(
            "SELECT target_modules, arg_min(r, adapter_id) AS r, arg_min(artifact_path, adapter_id) AS folder "
            f"FROM adapters WHERE base_content_root = '{literal}' AND status = 'available' AND r > 0 "
            "AND target_modules IS NOT NULL GROUP BY target_modules"
        )
        found = {}
        for row in rows:
            weights = registry.artifacts.root / row["folder"] / WEIGHTS
            try:
                size = weights.stat().st_size - read_safetensors_header(weights).data_start
                found[row["target_modules"]] = size / row["r"]
            except (OSError, ArtifactError):
                continue  # its files are gone, or kept in parts: there may be another group
        return found


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _search_details(path: str, stamp: Stamp, ref: str) -> SearchDetails:
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
def _adapter_details(path: str, stamp: Stamp, ref: str) -> AdapterDetails:
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
