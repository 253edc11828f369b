"""Two to four adapters side by side: where their configurations differ, what they reached, and how they learned."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.charts.learning_curves import curve, draw_compared_curves
from rankloom_dashboard.charts.style import show
from rankloom_dashboard.comparison import Row, bases_differ, configuration_rows, labels, metric_rows
from rankloom_registry import Adapter, AdapterNotFoundError

# Translucent, so that it marks a cell on a light ground and on a dark one.
_MARK = "background-color: rgba(99, 102, 241, 0.18)"


def render() -> None:
    """Shows the page."""
    st.title("Compare adapters")
    adapters = {adapter.adapter_id: adapter for adapter in data.glance().adapters}
    if len(adapters) < 2:
        elements.nothing_yet("A comparison needs two adapters. A search makes them:", "rankloom quickstart")
        return
    chosen = _choose(adapters)
    if len(chosen) < 2:
        st.info("Choose two to four adapters above, or select rows on the leaderboard.")
        return
    details = [data.adapter_details(adapter_id) for adapter_id in chosen]
    _compare(details)


def _choose(adapters: dict[str, Adapter]) -> list[str]:
    found = []
    for wanted in elements.wanted_ids():
        try:
            adapter = adapters.get(wanted) or data.adapter_details(wanted).adapter
        except AdapterNotFoundError as error:
            elements.problem("The address names an adapter that is not in this registry.", str(error))
            continue
        adapters[adapter.adapter_id] = adapter
        found.append(adapter.adapter_id)
    st.session_state["compared"] = list(dict.fromkeys(found))[: elements.MOST_COMPARED]
    chosen = st.multiselect(
        "Adapters",
        list(adapters),
        key="compared",
        format_func=lambda key: f"{adapters[key].name} · {formats.shorten(key)}",
        max_selections=elements.MOST_COMPARED,
        on_change=lambda: elements.remember_ids(st.session_state["compared"]),
    )
    if chosen != elements.wanted_ids():
        elements.remember_ids(chosen)
    return chosen


def _compare(details: Sequence[data.AdapterDetails]) -> None:
    adapters = [item.adapter for item in details]
    names = labels(adapters)
    if bases_differ(adapters):
        st.warning(
            "These adapters belong to different base weights. Their losses are not measured on one scale, "
            "and neither fits the other's base."
        )
        st.dataframe(
            pd.DataFrame(
                {"adapter": name, "base": item.base_identity, "content root": item.base_content_root}
                for name, item in zip(names, adapters, strict=True)
            ),
            hide_index=True,
            alt="The base of each adapter",
        )
    st.subheader("Metrics")
    _table(names, metric_rows(adapters), alt="Metrics of the adapters side by side")
    st.caption("A star marks the best of a row, which is the lowest. Steps and tokens are neither better nor worse.")
    st.subheader("Learning curves")
    curves = [curve(name, item.metrics) for name, item in zip(names, details, strict=True)]
    if any(item.steps for item in curves):
        show(
            draw_compared_curves(curves), key="compared-curves", alt=f"Eval loss of {len(curves)} adapters against step"
        )
        st.caption("Eval loss on held-out data at each step that was reported.")
    else:
        st.info("No steps were recorded for these adapters.")
    st.subheader("Configuration")
    only = st.toggle("Differences only", key="differences", bind="query-params")
    rows = [row for row in configuration_rows(adapters) if row.differs or not only]
    if rows:
        _table(names, rows, alt="Configurations of the adapters side by side", mark_differences=True)
        st.caption("Rows that differ are marked with ≠.")
    else:
        st.info("The configurations are the same.")


def _table(names: Sequence[str], rows: Sequence[Row], *, alt: str, mark_differences: bool = False) -> None:
    """Shows rows with their marks, each as a sign and as a colour: the rows that differ, or the best of each row."""
    marked = [[row.differs if mark_differences else index in row.best for index in range(len(names))] for row in rows]
    cells = [[f"{value} ★" if index in row.best else value for index, value in enumerate(row.values)] for row in rows]
    frame = pd.DataFrame(cells, columns=list(names))
    frame.insert(0, "property", [f"≠ {row.name}" if mark_differences and row.differs else row.name for row in rows])
    styles = pd.DataFrame([["", *(_MARK if mark else "" for mark in marks)] for marks in marked], columns=frame.columns)
    st.dataframe(
        frame.style.apply(lambda _: styles, axis=None),
        column_config={"property": st.column_config.TextColumn("", pinned=True)},
        hide_index=True,
        alt=alt,
    )


render()
