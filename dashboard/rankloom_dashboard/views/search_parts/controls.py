"""What can be told a search that runs: to stop a trial, to stop altogether, to try more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from rankloom.errors import RankloomError
from rankloom_dashboard import access, changes, elements, formats
from rankloom_dashboard.errors import DashboardError
from rankloom_dashboard.views.search_parts.view import View
from rankloom_registry import RegistryError

_MOST_ADDED = 10_000
_OUTCOME = "outcome"  # of the session: what became of the last request to a search, by search


def show(view: View) -> None:
    """Shows the buttons; each asks again before it acts."""
    forbidden = None if access.may("editor") else elements.needs("editor")
    with st.container(horizontal=True):
        _stop_trial(view, forbidden)
        _stop_search(view, forbidden)
        _add_trials(view, forbidden)
    # Stays until the next request: the page refreshes itself, and a passing message would be gone before it is read.
    done, refused = st.session_state.get(_OUTCOME, {}).get(view.search.search_id, ("", ""))
    if refused:
        elements.problem("What was asked last was not done.", refused)
    elif done:
        st.caption(done)


def _stop_trial(view: View, forbidden: str | None) -> None:
    running = {trial.number: trial for trial in view.trials if trial.status == "running"}
    with st.popover("Stop a trial", disabled=bool(forbidden) or not running, help=forbidden, key="ask-stop-trial"):
        if not running:
            return
        number = st.selectbox(
            "Trial",
            list(running),
            # Nothing that changes as it trains: a list that is open closes when its words change.
            format_func=lambda key: f"trial {key} · {running[key].lane}, slot {running[key].slot}",
            key="trial-to-stop",
        )
        why = _why("why-stop-trial")
        st.caption("Its adapter is kept, and the next trial gets its slot.")
        # The number is part of the key: if the list has changed by the time of the click, nothing else is stopped.
        if st.button(f"Stop trial {number}", type="primary", key=f"stop-trial-{number}"):
            _ask(
                view,
                lambda: changes.stop_trial(view.search.search_id, number, why=why),
                f"Trial {number} was told to stop.",
            )


def _stop_search(view: View, forbidden: str | None) -> None:
    with st.popover("Stop the search", disabled=bool(forbidden), help=forbidden, key="ask-stop-search"):
        why = _why("why-stop-search")
        st.caption("Its trials are interrupted. It can be resumed with:")
        st.code("rankloom search CONFIG.yaml --resume", language="bash")
        if st.button("Stop all its trials", type="primary", key="stop-search"):
            _ask(view, lambda: changes.stop_search(view.search.search_id, why=why), "The search was told to stop.")


def _add_trials(view: View, forbidden: str | None) -> None:
    with st.popover("Add trials", disabled=bool(forbidden), help=forbidden, key="ask-add-trials"):
        count = int(st.number_input("How many more", min_value=1, max_value=_MOST_ADDED, value=8, key="more-trials"))
        st.caption(f"It would then try {formats.count(view.search.num_samples + count)} in all.")
        if st.button(f"Add {formats.counted(count, 'trial', 'trials')}", type="primary", key="add-trials"):
            _ask(
                view,
                lambda: changes.add_trials(view.search.search_id, count),
                f"The search was told to try {count} more.",
            )


def _why(key: str) -> str:
    return st.text_input("Why (may be empty)", max_chars=500, key=key)


def _ask(view: View, change: Callable[[], Any], done: str) -> None:
    with st.spinner("Telling the search"):
        refused = ""
        try:
            change()
        except (DashboardError, RankloomError, RegistryError) as error:
            refused = str(error)
        # Before anything is drawn: the page's own refresh may have asked meanwhile that this run ends there.
        st.session_state[_OUTCOME] = {view.search.search_id: (done, refused)}
    st.rerun()
