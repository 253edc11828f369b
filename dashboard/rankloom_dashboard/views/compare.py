"""Two to six adapters side by side: where they differ, what they reached, how they learned, and how alike they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import get_args

import pandas as pd
import streamlit as st

from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.adapters import actions, reads, weights
from rankloom_dashboard.adapters.comparison import (
    Row,
    bases_differ,
    configuration_rows,
    labels,
    measured_rows,
    metric_rows,
)
from rankloom_dashboard.adapters.intervals import measured_losses
from rankloom_dashboard.adapters.listing import described
from rankloom_dashboard.charts.intervals import draw_intervals, intervals_info
from rankloom_dashboard.charts.learning_curves import curve, draw_compared_curves
from rankloom_dashboard.charts.similarity import Measure, draw_similarity, similarity_info
from rankloom_dashboard.charts.style import show
from rankloom_registry import Adapter, ArtifactError, Similarity

# Translucent, so that it marks a cell on a light ground and on a dark one.
_MARK = "background-color: rgba(99, 102, 241, 0.18)"
_PROPERTY = "property:"  # no adapter can be called so
_MEASURES: dict[Measure, str] = {"cosine": "Cosine", "column_overlap": "Column overlap", "row_overlap": "Row overlap"}
_EXPLAINED: dict[Measure, str] = {
    "cosine": "The angle between two updates, seen as vectors: 1 is the same direction, 0 nothing in common.",
    "column_overlap": "How far two updates write to the same directions: 1 if to the same ones, near 0 if at random.",
    "row_overlap": "How far two updates read from the same directions: 1 if from the same ones, near 0 if at random.",
}


def render() -> None:
    """Shows the page."""
    st.title("Compare adapters")
    newest = reads.page()
    if len(newest) < 2:
        elements.nothing_yet("A comparison needs two adapters. A search makes them:", "rankloom quickstart")
        return
    chosen = _choose({adapter.adapter_id: adapter for adapter in newest})
    if len(chosen) < 2:
        st.info("Choose two to six adapters above, or select rows in the list of adapters.")
        return
    _compare([data.adapter_details(adapter.adapter_id) for adapter in chosen])


def _choose(offered: dict[str, Adapter]) -> list[Adapter]:
    found, unknown = reads.named(elements.wanted_ids()[: 2 * elements.MOST_COMPARED])
    if unknown:
        elements.problem("The address names adapters that are not in this registry.", "\n".join(unknown))
    chosen = found[: elements.MOST_COMPARED]
    offered.update((adapter.adapter_id, adapter) for adapter in chosen)
    ids = [adapter.adapter_id for adapter in chosen]
    if ids != elements.wanted_ids():
        elements.remember_ids(ids)
    st.session_state["compared"] = ids
    st.multiselect(
        "Adapters",
        list(offered),
        key="compared",
        format_func=lambda key: described(offered[key]) if key in offered else key,
        max_selections=elements.MOST_COMPARED,
        accept_new_options=True,
        placeholder="Choose, or type an id, a name or name@alias",
        on_change=lambda: elements.remember_ids(st.session_state["compared"]),
    )
    return chosen


def _compare(details: Sequence[data.AdapterDetails]) -> None:
    adapters = [item.adapter for item in details]
    names = labels(adapters)
    with st.container(horizontal=True):
        actions.links(adapters, on=elements.COMPARE)
    if bases_differ(adapters):
        st.warning(
            "These adapters belong to different base weights. Their losses are not measured on one scale, "
            "and neither fits the other's base."
        )
        st.dataframe(
            pd.DataFrame(
                {"adapter": name, "base": formats.cut(item.base_identity), "content root": item.base_content_root}
                for name, item in zip(names, adapters, strict=True)
            ),
            hide_index=True,
            alt="The base of each adapter",
        )
    st.subheader("Metrics")
    _table(names, metric_rows(adapters), alt="Metrics of the adapters side by side")
    st.caption("A star marks the best of a row, which is the lowest, where one is better than another.")
    left, right = st.columns(2, gap="medium")
    with left:
        _curves(names, details)
    with right:
        _measured(names, details)
    _configurations(names, adapters)
    _alike(names, adapters)


def _curves(names: Sequence[str], details: Sequence[data.AdapterDetails]) -> None:
    st.subheader("Learning curves")
    curves = [curve(name, item.metrics) for name, item in zip(names, details, strict=True)]
    if not any(item.steps for item in curves):
        st.info("No steps were recorded for these adapters.")
        return
    show(draw_compared_curves(curves), key="compared-curves", alt=f"Eval loss of {len(curves)} adapters against step")
    st.caption("Eval loss on held-out data at each step that was reported.")


def _measured(names: Sequence[str], details: Sequence[data.AdapterDetails]) -> None:
    st.subheader("Held-out loss with intervals")
    measured = [measured_losses(item.evaluations, item.promotions) for item in details]
    rows = measured_rows(measured)
    if rows:
        _table(names, rows, alt="Losses on held-out rows side by side, with 95% intervals")
        # The rows that most adapters were measured on.
        key = max(dict.fromkeys(key for found in measured for key in found), key=lambda key: _known(key, measured))
        bars = intervals_info(names, [found.get(key) for found in measured])
        if any(bar.low < bar.high for bar in bars):
            show(draw_intervals(bars), key="intervals", alt=f"Held-out loss of {len(bars)} adapters with 95% intervals")
        st.caption(
            "Nats a token, with the 95% interval of a bootstrap over the held-out rows where one was recorded. "
            "Overlapping intervals do not say that two adapters are alike: evaluate them together for a paired test."
        )
    else:
        st.info("None of these adapters was measured again since its search, which records no interval.")
    if not all(any(one.low is not None for one in found.values()) for found in measured):
        st.caption("An evaluation records the interval:")
        st.code("rankloom evaluate ADAPTER --dataset FILE", language="bash")


def _known(key: str, measured: Sequence[Mapping[str, object]]) -> int:
    return sum(key in found for found in measured)


def _configurations(names: Sequence[str], adapters: Sequence[Adapter]) -> None:
    st.subheader("Configuration")
    only = st.toggle("Differences only", key="differences", bind="query-params")
    rows = [row for row in configuration_rows(adapters) if row.differs or not only]
    if rows:
        _table(names, rows, alt="Configurations of the adapters side by side", mark_differences=True)
        st.caption("Rows that differ are marked with ≠.")
    else:
        st.info("The configurations are the same.")


def _alike(names: Sequence[str], adapters: Sequence[Adapter]) -> None:
    st.subheader("Similarity of the weights")
    kept = [place for place, adapter in enumerate(adapters) if adapter.status == "available"]
    if len(kept) < 2:
        st.info("The files of two adapters are needed, and they were not kept.")
        return
    measure = st.segmented_control(
        "Measure",
        get_args(Measure),
        default="cosine",
        required=True,
        key="measure",
        bind="query-params",
        format_func=lambda one: _MEASURES[one],
        label_visibility="collapsed",
    )
    try:
        pairs = _pairs([adapters[place] for place in kept])
    except ArtifactError as error:
        elements.problem("The weights cannot be read.", str(error))
        return
    info = similarity_info([names[place] for place in kept], pairs, measure)
    left, right = st.columns(2, gap="medium")
    with left:
        show(draw_similarity(info), key="similarity", alt=f"How alike the weights of {len(kept)} adapters are")
        st.caption(f"{_EXPLAINED[measure]} Over the modules that both adapters update.")
        if len(kept) < len(adapters):
            st.caption("Adapters whose files were not kept are left out.")
    with right:
        st.dataframe(
            pd.DataFrame(
                {
                    "first": info.names[one],
                    "second": info.names[other],
                    "cosine": found.cosine,
                    "column overlap": found.column_overlap,
                    "row overlap": found.row_overlap,
                    "shared modules": len(found.modules),
                    "only first": len(found.only_first),
                    "only second": len(found.only_second),
                }
                for (one, other), found in pairs.items()
            ),
            hide_index=True,
            alt="How alike each two adapters are",
        )


def _pairs(adapters: Sequence[Adapter]) -> dict[tuple[int, int], Similarity]:
    places = list(combinations(range(len(adapters)), 2))
    bar = st.progress(0.0, text="Comparing the weights")
    found = {}
    for done, (one, other) in enumerate(places, 1):
        found[one, other] = weights.alike(adapters[one], adapters[other])
        bar.progress(done / len(places), text=f"Comparing the weights: {done} of {len(places)} pairs")
    bar.empty()
    return found


def _table(names: Sequence[str], rows: Sequence[Row], *, alt: str, mark_differences: bool = False) -> None:
    """Shows rows with their marks, each as a sign and as a colour: the rows that differ, or the best of each row."""
    marked = [[row.differs if mark_differences else index in row.best for index in range(len(names))] for row in rows]
    cells = [[f"{value} ★" if index in row.best else value for index, value in enumerate(row.values)] for row in rows]
    frame = pd.DataFrame(cells, columns=list(names))
    frame.insert(0, _PROPERTY, [f"≠ {row.name}" if mark_differences and row.differs else row.name for row in rows])
    styles = pd.DataFrame([["", *(_MARK if mark else "" for mark in marks)] for marks in marked], columns=frame.columns)
    st.dataframe(
        frame.style.apply(lambda _: styles, axis=None),
        column_config={_PROPERTY: st.column_config.TextColumn("", pinned=True)},
        hide_index=True,
        alt=alt,
        height="content",
    )


render()
