"""What the parameters did: all at once, one by one, and two against each other."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from rankloom_dashboard import formats
from rankloom_dashboard.charts import importance, pairs, parallel_coordinates, slices
from rankloom_dashboard.charts.axes import Axis, axes
from rankloom_dashboard.charts.samples import Sample
from rankloom_dashboard.charts.style import show as show_figure
from rankloom_dashboard.leaderboard import Objective
from rankloom_dashboard.views.search_parts.view import View, choose_samples

_MOST_AXES = 12
_MOST_NAMED = 80  # characters of a name
_GUESS = 20  # trials; of fewer, importance is one


def show(view: View) -> None:
    """Shows parallel coordinates, importance and slices."""
    found = choose_samples(view)
    told = axes(view.search, found)
    if _too_few(found, told):
        return
    if len(told) > _MOST_AXES:
        st.caption(f"These are the first {_MOST_AXES} of {len(told)} parameters.")
        told = told[:_MOST_AXES]
    left, right = st.columns([3, 2], gap="medium")
    with left:
        _parallel(found, told, view.objective)
    with right:
        _importance(found, told, view.objective)
    _slices(found, told, view.objective)


def _too_few(found: Sequence[Sample], told: Sequence[Axis]) -> bool:
    if len(found) < 2:
        st.info("Fewer than two such trials have a value. Let more of them count above, or wait.")
        return True
    if not told:
        st.info("These trials differ in no parameter.")
        return True
    return False


def _parallel(found: Sequence[Sample], told: Sequence[Axis], objective: Objective) -> None:
    st.subheader("Parallel coordinates")
    info = parallel_coordinates.parallel_coordinates_info(found, told, objective)
    show_figure(
        parallel_coordinates.draw_parallel_coordinates(info),
        key="parallel-coordinates",
        alt=f"{len(info.costs)} trials as lines across {len(told)} parameters and {objective.name}",
    )
    st.caption(
        "Coloured by rank: violet is best, red is worst. "
        "Drag along an upright to keep only the lines through that stretch."
    )


def _importance(found: Sequence[Sample], told: Sequence[Axis], objective: Objective) -> None:
    st.subheader("Importance")
    info = importance.importance_info(found, told, objective)
    if not info:
        st.info(f"These trials tell nothing of what mattered; it takes {importance.LEAST} that differ.")
        return
    show_figure(
        importance.draw_importance(info),
        key="importance",
        alt=f"Importance of {len(info)} parameters, the most important first",
    )
    count = len(importance.complete_samples(found, told))
    st.caption(
        f"How far a parameter's values among the best quarter differ from those among all (PED-ANOVA), from the "
        f"{count} trials that have them all{'; of so few, a guess' if count < _GUESS else ''}."
    )


def _slices(found: Sequence[Sample], told: Sequence[Axis], objective: Objective) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("Slices")
        log = st.toggle("log", key="log-slices", bind="query-params", help="Draw the axis of values logarithmically")
    with st.grid(min_column_width=280, gap="medium"):
        for index, axis in enumerate(told):
            info = slices.slice_info(found, axis)
            show_figure(
                slices.draw_slice(info, objective, log=log),
                key=f"slice-{index}",
                alt=f"{objective.name} of {len(info.places)} trials against {formats.cut(axis.name, _MOST_NAMED)}",
            )
    st.caption("One point a trial, open if it was stopped early; the later, the stronger the colour.")


def show_pairs(view: View) -> None:
    """Shows two parameters against each other."""
    found = choose_samples(view)
    told = {axis.name: axis for axis in axes(view.search, found)}
    if _too_few(found, list(told.values())):
        return
    if len(told) < 2:
        st.info("These trials differ in one parameter only; see Parameters.")
        return
    with st.grid(2, min_column_width=150):
        x = told[st.selectbox("Across", list(told), key="x", bind="query-params")]
        y = told[st.selectbox("Upwards", [name for name in told if name != x.name], key="y", bind="query-params")]
    left, right = st.columns(2, gap="medium")
    info = pairs.pair_info(found, x, y, view.objective)
    with left:
        st.subheader("Contour")
        show_figure(
            pairs.draw_contour(pairs.contour_info(info), view.objective),
            key="contour",
            alt=f"{view.objective.name} between {len(info.places)} trials in the plane of two parameters",
        )
        st.caption("Between trials the field is guessed from those near by, and left open where there are none.")
    with right:
        st.subheader("Rank")
        show_figure(
            pairs.draw_rank(info, view.objective),
            key="rank",
            alt=f"Ranks of {len(info.places)} trials in the plane of two parameters",
        )
        st.caption("The same trials by rank: differences that the losses' own scale hides can be seen here.")
