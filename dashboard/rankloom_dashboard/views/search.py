"""One search, live while it runs: its trials, how they learned, what held them, and what made the good ones good."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import streamlit as st

from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.views.search_parts import controls, courses, lanes, parameters, summary, trades, trials
from rankloom_dashboard.views.search_parts.view import View
from rankloom_registry import SearchNotFoundError, SearchRecord

_REFRESH_SECONDS = 2.0  # as often as a running search publishes what it has recorded
_TABS = {
    "Trials": trials.show,
    "Lanes": lanes.show,
    "Parameters": parameters.show,
    "Pairs": parameters.show_pairs,
    "Trade-offs": trades.show,
}


def render() -> None:
    """Shows the page."""
    st.title("Search")
    stamp, searches = data.stamp(), {search.search_id: search for search in data.searches()}
    if not searches:
        elements.nothing_yet("The registry holds no search yet. This makes one:", "rankloom quickstart")
        return
    _resolve(searches)
    chosen = elements.choose("Search", list(searches), key="search", show=lambda key: _name(searches[key]))
    details = data.search_details(chosen)
    view = View.of(details, status=data.status_now(details.search), now=datetime.now(UTC))
    _show(view)
    if view.status == "running":
        # To draw all of it again takes far longer than to see that nothing has changed.
        st.fragment(_watch, run_every=_REFRESH_SECONDS)(view.search, stamp)


def _resolve(searches: Mapping[str, SearchRecord]) -> None:
    """Lets the address name a search by its name or the beginning of its id, too."""
    wanted = st.query_params.get("search")
    if not wanted or wanted in searches:
        return
    try:
        st.query_params["search"] = data.search_details(wanted).search.search_id
    except SearchNotFoundError as error:
        elements.problem("The address names a search that is not in this registry.", str(error))
        del st.query_params["search"]


def _name(search: SearchRecord) -> str:
    return f"{search.name} · {formats.when(search.created_at)[:16]} · {formats.shorten(search.search_id, 8)}"


def _show(view: View) -> None:
    summary.show(view)
    if view.status == "running":
        controls.show(view)
    if not view.trials:
        st.info("No trial has started yet.")
        return
    courses.show(view)
    tabs = st.tabs(list(_TABS), key="tab", bind="query-params")
    for tab, show in zip(tabs, _TABS.values(), strict=True):
        if tab.open:
            with tab:
                show(view)


def _watch(search: SearchRecord, drawn: object) -> None:
    with elements.registry_problems():
        if data.stamp() != drawn or data.status_now(search) != "running":
            st.rerun()


render()
