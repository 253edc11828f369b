"""Which trial held which slot when."""

from __future__ import annotations

import streamlit as st

from rankloom_dashboard import data, formats
from rankloom_dashboard.charts.device_time import device_time
from rankloom_dashboard.charts.lane_timeline import draw_lane_timeline, lane_timeline_info
from rankloom_dashboard.charts.style import show as show_figure
from rankloom_dashboard.views.search_parts.view import View


def show(view: View) -> None:
    """Shows the timeline."""
    spans = data.trial_spans(view.search.search_id)
    info = lane_timeline_info(spans, view.until)
    if not info.bars:
        st.info("No attempt of a trial was recorded.")
        return
    show_figure(
        draw_lane_timeline(info),
        key="lanes",
        alt=f"Which of {len(info.bars)} attempts held which of {len(info.rows)} slots, over time",
    )
    spent = formats.duration(device_time(spans, view.until).at(view.until))
    st.caption(f"One bar an attempt, with the number of its trial. The lanes trained for {spent} in all.")
    if info.guessed:
        st.caption("Which slot each trial had was not recorded: the rows of a lane only say how many ran at once.")
