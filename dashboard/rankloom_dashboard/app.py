"""The entry that Streamlit runs: who may see anything, and the frame around the pages.

Streamlit puts this folder at the head of `sys.path`, so no module in it may bear the name of a standard-library one.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from rankloom_dashboard import access, elements
from rankloom_dashboard.errors import LoginError

_IMAGES = Path(__file__).with_name("images")


def frame() -> None:
    """Shows the page that the address names, to whoever may look."""
    st.set_page_config(page_title="rankloom", page_icon=str(_IMAGES / "icon.png"), layout="wide")
    st.logo(str(_IMAGES / "wordmark.png"), size="medium", icon_image=str(_IMAGES / "wordmark.png"))
    try:
        access.check()
        visitor = access.visitor()
    except LoginError as error:
        st.navigation(_pages(), position="hidden")
        elements.problem("Nobody can log in to this dashboard, so it shows nothing.", str(error))
        return
    page = st.navigation(_pages(), position="top" if visitor else "hidden")
    if visitor is None:
        elements.door(access.address())
        return
    elements.mark(visitor, changes=access.changes_allowed())
    with elements.registry_problems():
        page.run()


def _pages() -> list[st.Page]:
    return [
        st.Page(elements.OVERVIEW, title="Overview", url_path="overview", default=True),
        st.Page(elements.SEARCH, title="Searches", url_path="search"),
        st.Page(elements.ADAPTERS, title="Adapters", url_path="adapters"),
        st.Page(elements.ADAPTER, title="Adapter", url_path="adapter"),
        st.Page(elements.COMPARE, title="Compare", url_path="compare"),
        st.Page(elements.EVALUATE, title="Evaluate", url_path="evaluate"),
        st.Page(elements.PLAYGROUND, title="Playground", url_path="playground"),
        st.Page(elements.PROMOTE, title="Promote", url_path="promote"),
    ]


frame()
