"""The entry that Streamlit runs: the frame around the pages.

Streamlit puts this folder at the head of `sys.path`, so no module in it may bear the name of a standard-library one.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from rankloom_dashboard import elements

_IMAGES = Path(__file__).with_name("images")

st.set_page_config(page_title="rankloom", page_icon=str(_IMAGES / "icon.png"), layout="wide")
st.logo(str(_IMAGES / "wordmark.png"), size="medium", icon_image=str(_IMAGES / "wordmark.png"))
page = st.navigation(
    [
        st.Page(elements.OVERVIEW, title="Leaderboard", url_path="leaderboard", default=True),
        st.Page(elements.ADAPTERS, title="Adapters", url_path="adapters"),
        st.Page(elements.ADAPTER, title="Adapter", url_path="adapter"),
        st.Page(elements.COMPARE, title="Compare", url_path="compare"),
    ],
    position="top",
)
with elements.registry_problems():
    page.run()
