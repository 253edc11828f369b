"""How the trials of a search learned, and the best that was found by when and for how much."""

from __future__ import annotations

import streamlit as st

from rankloom_dashboard import data
from rankloom_dashboard.charts.learning_curves import draw_learning_curves, learning_curves_info
from rankloom_dashboard.charts.search_history import Against, draw_search_history, search_history_info
from rankloom_dashboard.charts.style import Scale
from rankloom_dashboard.charts.style import show as show_figure
from rankloom_dashboard.views.search_parts.view import View

_TOP = {"All": None, "Top 5": 5, "Top 10": 10, "Top 20": 20}
_AGAINST: dict[str, tuple[Against, str]] = {
    "Trials": ("trials", "trial"),
    "Time": ("time", "time since the search began"),
    "Device time": ("device time", "device time"),
}
_HISTORY_SAYS: dict[Against, str] = {
    "trials": "Where each trial ended, in the order of the search.",
    "time": "When each trial ended, and with what.",
    "device time": (
        "What the lanes had spent when each trial ended: seconds in which a lane trained, each counted once however "
        "many trials shared it. With a GPU in each lane these are GPU-seconds."
    ),
}
_LOGS: dict[str, Scale] = {"log loss": "y", "log steps": "x"}


def show(view: View) -> None:
    """Shows both."""
    left, right = st.columns([3, 2], gap="medium")
    with left:
        _curves(view)
    with right:
        _history(view)


def _curves(view: View) -> None:
    st.subheader("Learning curves")
    with st.container(horizontal=True, vertical_alignment="center"):
        top = st.segmented_control(
            "Curves",
            list(_TOP),
            default="All",
            required=True,
            key="curves",
            bind="query-params",
            label_visibility="collapsed",
        )
        logs = st.pills(
            "Logarithmic axes",
            list(_LOGS),
            selection_mode="multi",
            key="log",
            bind="query-params",
            label_visibility="collapsed",
        )
        stopped = st.toggle("Stopped early", value=True, key="stopped", bind="query-params")
    curves = learning_curves_info(
        view.trials, view.metrics, objective=view.objective, top=_TOP[top or "All"], stopped=stopped
    )
    if not curves:
        st.info("No trial has reported a value yet.")
        return
    show_figure(
        draw_learning_curves(curves, y=view.objective.name, log={_LOGS[name] for name in logs}),
        key="learning-curves",
        alt=f"{view.objective.name} against step for {len(curves)} trials; the best is drawn thickest",
    )
    st.caption("One line a trial. Thin grey lines were stopped early; click a word above to hide its lines.")


def _history(view: View) -> None:
    st.subheader("Best so far")
    with st.container(horizontal=True, vertical_alignment="center"):
        chosen = st.segmented_control(
            "Against",
            list(_AGAINST),
            default="Trials",
            required=True,
            key="against",
            bind="query-params",
            label_visibility="collapsed",
        )
        log = st.toggle("log", key="log-best", bind="query-params", help="Draw the axis of values logarithmically")
    against, words = _AGAINST[chosen or "Trials"]
    info = search_history_info(
        view.trials,
        view.objective,
        against=against,
        spans=data.trial_spans(view.search.search_id) if against == "device time" else (),
        began=view.search.created_at,
        until=view.until,
    )
    if not info.points:
        st.info("No trial has a value yet.")
        return
    show_figure(
        draw_search_history(info, y=view.objective.name, x=words, log={"y"} if log else set()),
        key="best-so-far",
        alt=f"{view.objective.name} of {len(info.points)} trials and the best so far, against {words}",
    )
    st.caption(f"{_HISTORY_SAYS[against]} The dashed level is trial 0, which ran the prior configuration.")
