"""One search, live while it runs: its trials, how they learned, what held them, and what made the good ones good."""

from __future__ import annotations

from datetime import UTC, datetime

import streamlit as st

from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.views.search_parts import controls, courses, lanes, parameters, summary, trades, trials
from rankloom_dashboard.views.search_parts.view import View
from rankloom_registry import SearchRecord

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
    searches = {search.search_id: search for search in data.searches()}
    if not searches:
        elements.nothing_yet("The registry holds no search yet. This makes one:", "rankloom quickstart")
        return
    chosen = elements.choose("Search", list(searches), key="search", show=lambda key: _name(searches[key]))
    live = data.status_now(searches[chosen]) == "running"
    st.fragment(_search, run_every=_REFRESH_SECONDS if live else None)(chosen, live=live)


def _name(search: SearchRecord) -> str:
    return f"{search.name} · {formats.when(search.created_at)[:16]} · {formats.shorten(search.search_id, 8)}"


def _search(search_id: str, *, live: bool) -> None:
    with elements.registry_problems():
        details = data.search_details(search_id)
        status = data.status_now(details.search)
        if live and status != "running":
            st.rerun()  # the whole page, which then no longer refreshes itself
        view = View.of(details, status=status, now=datetime.now(UTC))
        summary.show(view)
        if live:
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


render()
