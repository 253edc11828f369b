"""What the pages of evaluations and of the playground read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import streamlit as st

from rankloom.evaluation.report import Report, load_report, report_file
from rankloom_dashboard import data
from rankloom_registry import Adapter, EvaluationRecord, Registry

_OFFERED = 300  # of what a page offers to choose from


def available_adapters() -> list[Adapter]:
    """Reads the newest adapters that have files, a few hundred of them."""
    return _available_adapters(*data.key())


def evaluations() -> list[EvaluationRecord]:
    """Reads the newest evaluations of all adapters, a few hundred of them."""
    return _evaluations(*data.key())


def report(evaluation_id: str) -> Report:
    """Reads what was kept of an evaluation row by row; shared by all pages, so nobody may change it.

    Raises:
        DataError: It is not there.
    """
    file = report_file(data.registry_path(), evaluation_id)
    try:
        status = file.stat()
    except FileNotFoundError:
        return load_report(file)  # which says what to do
    return _report(file, status.st_mtime_ns, status.st_size)


@st.cache_data(ttl=60, max_entries=8, show_spinner=False)
def _available_adapters(path: str, stamp: data.Stamp) -> list[Adapter]:
    with Registry.open(path, wait_s=data.WAIT_SECONDS) as registry:
        return registry.adapters("status = 'available'", limit=_OFFERED)


@st.cache_data(ttl=60, max_entries=8, show_spinner=False)
def _evaluations(path: str, stamp: data.Stamp) -> list[EvaluationRecord]:
    columns = ", ".join(field.name for field in fields(EvaluationRecord))
    query = f"SELECT {columns} FROM evaluations ORDER BY created_at DESC, evaluation_id"
    with Registry.open(path, wait_s=data.WAIT_SECONDS) as registry:
        return [EvaluationRecord(**row) for row in registry.sql(query, limit=_OFFERED)]


@st.cache_resource(max_entries=4, show_spinner=False)
def _report(file: Path, changed: int, size: int) -> Report:
    return load_report(file)
