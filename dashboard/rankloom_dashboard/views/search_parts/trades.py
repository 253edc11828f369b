"""What a better value costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from rankloom_dashboard import data
from rankloom_dashboard.charts import pareto
from rankloom_dashboard.charts.samples import Sample
from rankloom_dashboard.charts.style import Scale
from rankloom_dashboard.charts.style import show as show_figure
from rankloom_dashboard.views.search_parts.view import View, choose_samples

_LOGS: dict[str, Scale] = {"log across": "x", "log upwards": "y"}


def show(view: View) -> None:
    """Shows the trials by two measures."""
    found = choose_samples(view)
    if not found:
        st.info("No such trial has a value. Let more of them count above, or wait.")
        return
    x, y, log = _choose()
    sizes = _sizes(view, found) if "adapter size" in (x, y) else {}
    info = pareto.pareto_info(found, view.objective, x=x, y=y, sizes=sizes, until=view.until)
    if not info.trades:
        st.info("None of these trials has both measures on record.")
        return
    left, right = st.columns(2, gap="medium")
    with left:
        _front(view, info, log)
    with right:
        _hypervolume(view, info)


def _choose() -> tuple[pareto.Cost, pareto.Cost, frozenset[Scale]]:
    with st.grid(3, min_column_width=180):
        x = st.selectbox("Across", pareto.COSTS, index=2, key="across", bind="query-params")
        y = st.selectbox("Upwards", [cost for cost in pareto.COSTS if cost != x], key="upwards", bind="query-params")
        logs = st.pills("Scales", list(_LOGS), selection_mode="multi", key="log-trade", bind="query-params")
    return x, y, frozenset(_LOGS[name] for name in logs)


def _front(view: View, info: pareto.ParetoInfo, log: frozenset[Scale]) -> None:
    st.subheader("Pareto front")
    show_figure(
        pareto.draw_pareto(info, view.objective, log=log),
        key="pareto",
        alt=f"{len(info.trades)} trials by {info.x} and {info.y}; {len(info.front)} are not beaten in both",
    )
    st.caption(
        "A trial on the line is not beaten: no other is as good in both and better in one. "
        + ("Peak memory is that of the whole lane. " if "peak memory" in (info.x, info.y) else "")
        + (
            "Adapter size is worked out from the rank and an adapter with the same target modules that is kept. "
            if "adapter size" in (info.x, info.y)
            else ""
        )
        + (f"Not known of {info.missing} trials." if info.missing else "")
    )


def _hypervolume(view: View, info: pareto.ParetoInfo) -> None:
    st.subheader("Hypervolume over time")
    course = pareto.hypervolume_info(info, view.objective, view.search.created_at)
    if not course.shares:
        st.info("It takes two trials that differ in both measures.")
        return
    show_figure(
        pareto.draw_hypervolume(course),
        key="hypervolume",
        alt=f"Share of the rectangle that trials dominate, over time; {course.shares[-1]:.0%} at the end",
    )
    st.caption(
        "The share of the rectangle, between the best and the worst of each measure, that the trials so far dominate. "
        "A level stretch is time that found no better trade."
    )


def _sizes(view: View, found: Sequence[Sample]) -> Mapping[str, float]:
    return pareto.adapter_sizes([sample.trial for sample in found], data.rank_bytes(view.search.base_content_root))
