"""The table of a search's trials, and what can be done with those that are selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from rankloom_dashboard import elements, formats
from rankloom_dashboard.charts.style import color_of
from rankloom_dashboard.leaderboard import STATES, Objective, leaderboard_rows, parameters, rung_steps
from rankloom_dashboard.views.search_parts.view import View

_number = st.column_config.NumberColumn
_text = st.column_config.TextColumn
_WIDTHS = {"r": 50, "lora_alpha": 85, "learning_rate": 95, "target_modules": 120, "lora_dropout": 95}


def show(view: View) -> None:
    """Shows the table."""
    told = parameters(view.trials)
    steps = rung_steps(view.search, view.trials, view.metrics)
    rows = leaderboard_rows(view.trials, view.objective, steps)
    picked = elements.pick_adapters(
        rows,
        _columns(view.objective, told.varying, rows, rungs=bool(steps)),
        key=f"trials-{view.search.search_id}",
        alt=f"Trials ranked by {view.objective.name}",
    )
    if told.constant:
        same = " · ".join(f"{name} {value}" for name, value in told.constant.items())
        with st.expander("Parameters that are the same in every trial"):
            st.text(formats.shorten(same, 2000))
    _act_on(picked)


def _columns(
    objective: Objective, varying: Sequence[str], rows: Sequence[dict[str, Any]], *, rungs: bool
) -> dict[str, Any]:
    """Configures the columns in their order: outcome, place, parameters that differ, cost, and what it left."""
    state = st.column_config.MultiselectColumn(
        "state", options=list(STATES.values()), color=[color_of(status) for status in STATES], width=110
    )
    loss = _number(objective.name, format="%.4f", width=80)
    columns: dict[str, Any] = {
        "rank": _number("#", width=40),
        "trial": _number("trial", width=50),
        "state": state,
        **({"rung": _text("rung", width=55, help="Rungs of early stopping that it passed")} if rungs else {}),
        "steps": _number("steps", width=55),
        objective.column: loss,
        "gain": _number("gain", format="%+.4f", width=75, help=f"How much better {objective.name} is than trial 0's"),
        "lane": _text("lane", width=75),
        "slot": _number("slot", width=45),
    }
    for name in varying:
        if name not in columns:
            columns[name] = _parameter(name, [row.get(name) for row in rows])
    return columns | {
        "memory": _number("peak memory", format="%.2f GiB", width=95),
        "seconds": _number("time", format="%.1f s", width=75),
        "adapter": _text("adapter", width=130),
        "message": _text("message"),
    }


def _parameter(name: str, values: Sequence[Any]) -> Any:
    numbers = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in numbers):
        return _text(width=_WIDTHS.get(name))
    if all(isinstance(value, int) for value in numbers):
        return _number(width=_WIDTHS.get(name))
    small = all(abs(value) < 1e-2 for value in numbers)
    return _number(format="%.2e" if small else "%.4g", width=_WIDTHS.get(name))


def _act_on(picked: Sequence[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(
            elements.ADAPTER,
            label="Open adapter",
            query_params={"adapter": picked[0]} if picked else None,
            disabled=len(picked) != 1,
        )
        st.page_link(
            elements.COMPARE,
            label="Compare adapters",
            query_params={"ids": ",".join(picked)} if picked else None,
            disabled=not 2 <= len(picked) <= elements.MOST_COMPARED,
        )
        st.caption("Select one row with an adapter to open it, two to six to compare them.")
