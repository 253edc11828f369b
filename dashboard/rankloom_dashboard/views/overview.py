"""The registry at a glance: what it holds, what runs now, what needs attention, and the latest of everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from rankloom_dashboard import attention, data, elements, formats, upkeep
from rankloom_dashboard.charts.style import ROLE_COLORS
from rankloom_dashboard.jobs.job import Job, board
from rankloom_registry import Counts, SearchRecord, Summary

_CELL = 200  # characters
_BUSY_S, _IDLE_S = 2.0, 15.0  # between looks of the page, while something runs and while nothing does
_STATES = {
    "running": ROLE_COLORS["running"],
    "completed": ROLE_COLORS["completed"],
    "interrupted": ROLE_COLORS["interrupted"],
    "failed": ROLE_COLORS["failed"],
}
_OUTCOMES = {
    "done": ROLE_COLORS["running"],
    "done, forced": ROLE_COLORS["prior"],
    "refused": ROLE_COLORS["failed"],
    "undone": ROLE_COLORS["stopped"],
}
_text, _number = st.column_config.TextColumn, st.column_config.NumberColumn
_SEARCHES = {
    "name": _text("search", width=150),
    "state": st.column_config.MultiselectColumn(
        "state", options=list(_STATES), color=list(_STATES.values()), width=105
    ),
    "trials": _text("trials", width=75),
    "value": _number("best", format="%.4f", width=75, help="The best value of the search's metric"),
    "best": _text("best adapter", width=150),
    "base": _text("base", width=200),
    "started": _text("started", width=115),
}
_IN_USE = {
    "reference": _text("alias", width=160),
    "value": _number("eval loss", format="%.4f", width=80),
    "since": _text("since", width=105),
}
_PROMOTIONS = {
    "outcome": st.column_config.MultiselectColumn(
        "outcome", options=list(_OUTCOMES), color=list(_OUTCOMES.values()), width=105
    ),
    "adapter": _text("adapter", width=115),
    "format": _text("format", width=85),
    "alias": _text("alias", width=120),
    "when": _text("when", width=105),
    "reason": _text("reason", width=200),
}


def render() -> None:
    """Shows the page."""
    st.title("Overview")
    summary = data.summary()
    if not (summary.counts.searches or summary.counts.adapters):
        st.text(f"{data.registry_path().name} is empty.")
        elements.nothing_yet("A search fills the registry:", "rankloom quickstart")
        return
    busy = _busy(summary, _lost(summary))
    st.fragment(_body, run_every=_BUSY_S if busy else _IDLE_S)(busy=busy)


def _lost(summary: Summary) -> list[SearchRecord]:
    """The searches that are recorded as running, and whose process is gone: they may stay so for good."""
    return [search for search in summary.running if data.status_now(search) != "running"]


def _busy(summary: Summary, lost: Sequence[SearchRecord]) -> bool:
    running = len(summary.running) > len(lost)
    return bool(running or _jobs() or upkeep.inspector().look(data.registry_path()) is None)


def _jobs() -> list[Job]:
    return [job for job in board().all() if job.state == "running"]


def _body(*, busy: bool) -> None:
    with elements.registry_problems():
        summary = data.summary()
        lost = _lost(summary)
        if busy != _busy(summary, lost):
            st.rerun()  # the whole page, which then looks more or less often
        found = upkeep.inspector().look(data.registry_path())
        _numbers(summary.counts, found)
        left, right = st.columns(2, gap="medium")
        with left:
            _running([search for search in summary.running if search not in lost])
        with right:
            attention.show(summary, found, lost)
        _searches(summary, {search.search_id for search in lost})
        left, right = st.columns([1, 2], gap="medium")
        with left:
            _in_use(summary)
        with right:
            _promotions(summary)


def _numbers(counts: Counts, found: upkeep.Inspection | None) -> None:
    size = "…" if found is None else formats.size(found.bytes)
    elements.numbers(
        {
            "Bases": formats.count(counts.bases),
            "Searches": formats.count(counts.searches),
            "Trials": formats.count(counts.trials),
            "Adapters kept": f"{counts.available:,} of {counts.adapters:,}",
            "Promotions": formats.count(counts.promotions),
            "Disk": size,
        }
    )


def _running(searches: Sequence[SearchRecord]) -> None:
    st.subheader("Running now")
    jobs = _jobs()
    if not searches and not jobs:
        st.caption("Nothing runs now. A search is started with:")
        st.code("rankloom search CONFIG.yaml", language="bash")
        return
    for search in searches:
        with st.container(border=True, gap="small"):
            with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
                st.text(search.name, width="content")
                st.page_link(elements.SEARCH, label="Open search", query_params={"search": search.search_id})
            st.progress(
                min(1.0, search.finished_trials / search.num_samples) if search.num_samples else 0.0,
                text=f"{search.finished_trials} of {search.num_samples} trials · best {formats.loss(search.best_value)}"
                f" · started {formats.ago(search.created_at)}",
            )
    for job in jobs:
        with st.container(border=True, gap="small"):
            stage, done, total = job.progress or ("starting", 0, 0)
            st.text(f"{job.kind}{f' for {job.who}' if job.who else ''}")
            st.progress(min(1.0, done / total) if total else 0.0, text=attention.STAGES.get(stage, "working"))


def _searches(summary: Summary, lost: set[str]) -> None:
    st.subheader("Latest searches")
    if not summary.searches:
        st.info("No search has been recorded: the adapters here were imported.")
        return
    rows = []
    for search in summary.searches:
        best = summary.best.get(search.search_id)
        rows.append(
            {
                "id": search.search_id,
                "name": search.name,
                "state": ["interrupted" if search.search_id in lost else search.status],
                "trials": f"{search.finished_trials} of {search.num_samples}",
                "value": search.best_value,
                "best": best.name if best else None,
                "base": formats.cut(formats.base(search.base_identity or ""), _CELL),
                "started": formats.ago(search.created_at),
            }
        )
    chosen = _pick(rows, _SEARCHES, key="search", alt="The latest searches, newest first")
    best = summary.best.get(chosen or "")
    with st.container(horizontal=True, vertical_alignment="center"):
        _link(elements.SEARCH, "Open search", "search", chosen)
        _link(elements.ADAPTER, "Open best adapter", "adapter", best.adapter_id if best else None)
        st.caption("Select a row to open it.")


def _in_use(summary: Summary) -> None:
    st.subheader("In use")
    if not summary.in_use:
        elements.nothing_yet("No alias means an adapter yet:", "rankloom adapters alias ADAPTER prod")
        return
    rows = [
        {
            "id": alias.adapter_id,
            "reference": f"{alias.name}@{alias.alias}",
            "value": alias.eval_loss,
            "since": formats.ago(alias.created_at),
        }
        for alias in summary.in_use
    ]
    chosen = _pick(rows, _IN_USE, key="alias", alt="What aliases mean, the last moved first")
    _link(elements.ADAPTER, "Open adapter", "adapter", chosen)


def _promotions(summary: Summary) -> None:
    st.subheader("Latest promotions")
    if not summary.promotions:
        elements.nothing_yet("Nothing was promoted yet:", "rankloom promote ADAPTER --output DIR")
        return
    rows = [
        {
            "id": promotion.adapter_id,
            "outcome": [f"{promotion.status}, forced" if promotion.forced else promotion.status],
            "adapter": promotion.adapter_id,
            "format": formats.cut(promotion.format, _CELL),
            "alias": formats.cut(promotion.alias, _CELL) if promotion.alias else None,
            "when": formats.ago(promotion.created_at),
            "reason": formats.cut(promotion.reason) or None,
        }
        for promotion in summary.promotions
    ]
    chosen = _pick(rows, _PROMOTIONS, key="promotion", alt="The latest promotions, newest first")
    _link(elements.ADAPTER, "Open adapter", "adapter", chosen)


def _pick(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any], *, key: str, alt: str) -> str | None:
    """Shows a table of which one row can be selected; its `id` stands in the address, under `key`."""
    wanted = st.query_params.get(key)
    # Streamlit remembers selected rows by position. A new order is a new table, which starts from the address again.
    order = hash(tuple(row["id"] for row in rows))
    state = st.dataframe(
        pd.DataFrame(rows, columns=list(columns)),
        column_config=dict(columns),
        hide_index=True,
        placeholder=formats.MISSING,
        key=f"{key}-{order}",
        on_select="rerun",
        selection_mode="single-row",
        selection_default={"selection": {"rows": [at for at, row in enumerate(rows) if row["id"] == wanted][:1]}},
        alt=alt,
    )
    chosen = next((str(rows[at]["id"]) for at in state["selection"]["rows"]), None)
    if chosen is None:
        st.query_params.pop(key, None)
    elif chosen != wanted:
        st.query_params[key] = chosen
    return chosen


def _link(page: str, label: str, parameter: str, value: str | None) -> None:
    st.page_link(page, label=label, query_params={parameter: value} if value else None, disabled=value is None)


render()
