"""What the charts have in common: colours that hold on light and dark, one layout, and text that stays text."""

from __future__ import annotations

import html
from collections.abc import Collection
from typing import Literal

import plotly.graph_objects as go
import streamlit as st

Role = Literal["best", "prior", "completed", "stopped", "failed", "running", "interrupted"]
Scale = Literal["x", "y"]

ROLE_COLORS: dict[Role, str] = {
    "best": "#6366F1",
    "prior": "#F59E0B",
    "completed": "#38A3C7",
    "stopped": "#9CA3AF",
    "failed": "#EF4444",
    "running": "#10B981",
    "interrupted": "#A78BFA",
}
ROLE_NAMES: dict[Role, str] = {
    "best": "best",
    "prior": "prior",
    "completed": "completed",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "running",
    "interrupted": "interrupted",
}
# Told apart by shape, dash and pattern as well as by colour.
ROLE_SYMBOLS: dict[Role, str] = {
    "best": "star",
    "prior": "diamond",
    "completed": "circle",
    "stopped": "circle-open",
    "failed": "x",
    "running": "triangle-up",
    "interrupted": "square-open",
}
ROLE_DASHES: dict[Role, str] = {
    "best": "solid",
    "prior": "dash",
    "completed": "solid",
    "stopped": "solid",
    "failed": "dot",
    "running": "longdash",
    "interrupted": "dashdot",
}
ROLE_PATTERNS: dict[Role, str] = {
    "best": "",
    "prior": "",
    "completed": "",
    "stopped": "/",
    "failed": "x",
    "running": "|",
    "interrupted": "-",
}
# From the best to the worst; no end of it is lost on a light ground or on a dark one.
COST_SCALE = ((0.0, "#6D5DF6"), (0.25, "#0E9AA7"), (0.55, "#E0A526"), (1.0, "#D9480F"))
# Told apart by dash as well as by colour.
SERIES = (
    ("#6366F1", "solid"),
    ("#F59E0B", "dash"),
    ("#10B981", "dot"),
    ("#EC4899", "dashdot"),
    ("#0EA5E9", "longdash"),
    ("#A16207", "longdashdot"),
)


def plain(text: str) -> str:
    """Escapes text for Plotly, which reads a subset of HTML in every label."""
    return html.escape(text, quote=False)


def faded(color: str, opacity: float) -> str:
    """Returns a colour that lets through what is under it: of lines in one trace, also the lines of that trace."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def role_of(status: str, *, is_best: bool, is_prior: bool) -> Role:
    """Says as what a trial is drawn: the best and the prior stand out whatever their state."""
    if is_best:
        return "best"
    if is_prior:
        return "prior"
    match status:
        case "completed" | "stopped" | "failed" | "running" | "interrupted":
            return status
        case _:
            return "interrupted"


def color_of(status: str) -> str:
    """Returns the colour of a trial's state."""
    return ROLE_COLORS[role_of(status, is_best=False, is_prior=False)]


def with_unit(loss: str) -> str:
    """Names the axis of a loss."""
    return f"{loss}, nats a token"


def time_unit(longest: float) -> tuple[float, str]:
    """Chooses the unit for an axis of times.

    Args:
        longest: The longest of them, in seconds.

    Returns:
        The seconds in the unit, and its name.
    """
    if longest < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")


def lay_out(figure: go.Figure, *, x: str, y: str, height: int = 340) -> go.Figure:
    """Gives a figure the layout that all charts share."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 8, "b": 0},
        xaxis={"title": x, "automargin": True},
        yaxis={"title": y, "automargin": True},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0},
        hovermode="closest",
        uirevision="kept",  # what the reader zoomed into stays when the page refreshes itself
    )
    return figure


def scale(figure: go.Figure, log: Collection[Scale]) -> go.Figure:
    """Makes axes of a figure logarithmic; each zoom belongs to the scale that it was made on.

    An axis with a 0 or less on it stays linear and says so, as Plotly would leave out such points without a word.
    """
    for name, axis in (("x", figure.layout.xaxis), ("y", figure.layout.yaxis)):
        drawn = name in log
        if drawn and any(value is not None and value <= 0 for trace in figure.data for value in trace[name]):
            drawn = False
            axis.title.text += " (linear: 0 or less has no logarithm)"
        axis.update(type="log" if drawn else "linear", uirevision=drawn)
    return figure


def show(figure: go.Figure, *, key: str, alt: str) -> None:
    """Puts a figure on the page, with its description for screen readers."""
    st.plotly_chart(figure, key=key, alt=alt, theme="streamlit", config={"displayModeBar": False})
