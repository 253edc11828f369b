"""All adapters: filtered as on the command line, ordered, page by page, and selected for what comes next."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.adapters import actions, filters, forms, listing, reads
from rankloom_dashboard.charts.style import ROLE_COLORS
from rankloom_registry import Adapter, QueryError

PAGE_ROWS = 50
MOST_SELECTED = 100
ORDER = "eval_loss"
_ORDERS = (
    ORDER,
    "created_at desc",
    "name, trial_number",
    "r",
    "learning_rate",
    "train_loss",
    "effective_rank desc",
    "update_norm desc",
    "peak_memory_bytes",
    "wall_s",
)
_AMONG = {"base_identity": "Base", "search_name": "Search", "target_modules": "Target modules", "status": "Files"}
# Side, column, label, and the step of the buttons.
_BOUNDS = (
    ("least", "r", "Rank from", 1.0),
    ("most", "r", "Rank to", 1.0),
    ("least", "learning_rate", "Learning rate from", 1e-4),
    ("most", "learning_rate", "Learning rate to", 1e-4),
    ("most", "eval_loss", "Eval loss at most", 0.1),
    ("most", "train_loss", "Train loss at most", 0.1),
    ("least", "steps", "Steps at least", 10.0),
)
_number, _text = st.column_config.NumberColumn, st.column_config.TextColumn
_COLUMNS = {
    "name": _text("name", width=130, pinned=True),
    "trial": _number("trial", width=50),
    "eval_loss": _number("eval loss", format="%.4f", width=75),
    "r": _number("r", help="Rank of the update", width=45),
    "lora_alpha": _number("alpha", format="%.3g", width=55),
    "learning_rate": _number("learning rate", format="%.2e", width=95),
    "target_modules": _text("target modules", width=120),
    "files": st.column_config.MultiselectColumn(
        "files", options=["available", "discarded"], color=[ROLE_COLORS["running"], ROLE_COLORS["stopped"]], width=95
    ),
    "aliases": st.column_config.ListColumn("aliases", width=100),
    "tags": st.column_config.ListColumn("tags", width=120),
    "search": _text("search", width=130),
    "base": _text("base", width=220),
    "lora_dropout": _number("dropout", format="%.3g", width=70),
    "train_loss": _number("train loss", format="%.4f", width=80),
    "steps": _number("steps", width=55),
    "effective_rank": _number("effective rank", format="%.2f", width=100, help="Mean over the modules"),
    "update_norm": _number("update norm", format="%.3f", width=95, help="Frobenius norm of the whole update"),
    "memory": _text("peak memory", width=95),
    "time": _text("time", width=95),
    "created": _text("created", width=130),
    "adapter": _text("adapter", width=130),
}


def render() -> None:
    """Shows the page."""
    st.title("Adapters")
    forms.tell()
    where, tag, order = _filter()
    try:
        passing, total = reads.counts(where, tag=tag)
        number = _turn(passing, total, filtered=bool(where or tag))
        adapters = reads.page(where, tag=tag, order_by=order, limit=PAGE_ROWS, offset=PAGE_ROWS * (number - 1))
    except QueryError as error:
        elements.problem("The registry cannot take this filter or this order.", str(error))
        return
    if not total:
        elements.nothing_yet("The registry holds no adapters yet. A search makes them:", "rankloom quickstart")
        return
    selected = _selected()
    actions = st.container()
    if adapters:
        selected = _table(adapters, selected)
    else:
        st.info("No adapter passes this filter.")
    with actions:
        _act_on(selected, elsewhere=len({one.adapter_id for one in selected} - {one.adapter_id for one in adapters}))
    with st.expander("The same on the command line"):
        told = filters.command(where, tag=tag, order_by=order, limit=PAGE_ROWS, registry=data.registry_path())
        st.code(told, language="bash", wrap_lines=True)


def _filter() -> tuple[str, str | None, str]:
    """Shows the widgets of the filter, which write its text, and the text, which sets the widgets."""
    facets = reads.facets()
    with st.expander("Filter", expanded=True):
        widgets = st.container()
        left, right = st.columns([3, 1], gap="small")
    where = left.text_input(
        "Filter as text",
        key="where",
        bind="query-params",
        max_chars=filters.LONGEST,
        placeholder="eval_loss < 2 and r <= 16",
        help="Comparisons of columns with values, joined by and, or, not, in, between, like, is null.",
        on_change=_first_page,
    )
    order = right.selectbox(
        "Order",
        list(dict.fromkeys([*_ORDERS, st.query_params.get("order", ORDER)])),
        key="order",
        bind="query-params",
        accept_new_options=True,
        help="Columns, each with asc or desc.",
        on_change=_first_page,
    )
    wanted = filters.read(where)
    with widgets, st.grid(min_column_width=150, gap="small"):
        for column, label in _AMONG.items():
            known, chosen = facets.values[column], wanted.among.get(column, ())
            st.session_state[f"among_{column}"] = list(chosen)
            st.multiselect(
                label,
                list(dict.fromkeys([*known, *chosen])),
                key=f"among_{column}",
                format_func=_shown,
                placeholder="any",
                on_change=_write_filter,
            )
        # A tag that nobody has any more is still what a shared address asks for.
        tags = list(dict.fromkeys([*facets.tags, *filter(None, [st.query_params.get("tag")])]))
        tag = st.selectbox(
            "Tag", tags, index=None, key="tag", bind="query-params", placeholder="any", on_change=_first_page
        )
        for side, column, label, step in _BOUNDS:
            st.session_state[f"{side}_{column}"] = getattr(wanted, side).get(column)
            st.number_input(
                label,
                value=None,
                step=step,
                format="%g",
                key=f"{side}_{column}",
                placeholder="any",
                on_change=_write_filter,
            )
    return where, tag, order or ORDER


def _shown(value: str) -> str:
    return formats.cut(formats.base(value), 100)


def _write_filter() -> None:
    state = st.session_state
    before = filters.read(state["where"])
    bounds: dict[str, dict[str, float]] = {side: dict(getattr(before, side)) for side in ("least", "most")}
    for side, column, *_ in _BOUNDS:
        bounds[side].pop(column, None)
        if state[f"{side}_{column}"] is not None:
            bounds[side][column] = state[f"{side}_{column}"]
    among = {column: tuple(state[f"among_{column}"]) for column in _AMONG}
    state["where"] = filters.write(filters.Filter(among=among, rest=before.rest, **bounds))
    _first_page()


def _first_page() -> None:
    st.session_state["page"] = 1


def _reset() -> None:
    st.session_state["where"], st.session_state["tag"] = "", None
    _first_page()


def _turn(passing: int, total: int, *, filtered: bool) -> int:
    """Shows how many adapters there are and which page of them this is; returns its number."""
    pages = max(1, math.ceil(passing / PAGE_ROWS))
    if st.session_state.get("page", 1) > pages:
        st.session_state["page"] = pages
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        line = st.empty()
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            st.button("Reset filter", type="tertiary", disabled=not filtered, on_click=_reset)
            number = st.pagination(pages, key="page", bind="query-params")
    first = PAGE_ROWS * (number - 1) + 1
    shown = f"{first:,}–{min(passing, first + PAGE_ROWS - 1):,} of " if passing else ""
    those = "" if passing == total else f"{passing:,} that pass, of "
    line.text(f"{shown}{those}{formats.counted(total, 'adapter', 'adapters')}")
    return number


def _selected() -> list[Adapter]:
    found, unknown = reads.named(elements.wanted_ids()[:MOST_SELECTED])
    if unknown:
        elements.problem("The address names adapters that are not in this registry.", "\n".join(unknown))
    return found


def _table(adapters: Sequence[Adapter], selected: Sequence[Adapter]) -> list[Adapter]:
    ids, wanted = [one.adapter_id for one in adapters], [one.adapter_id for one in selected]
    # Streamlit remembers ticked rows by position: other rows, or a selection made elsewhere, are another table.
    version = st.session_state.setdefault("adapters_version", 0)
    state = st.dataframe(
        pd.DataFrame(listing.rows(adapters), columns=list(_COLUMNS)),
        column_config=_COLUMNS,
        hide_index=True,
        placeholder=formats.MISSING,
        height=35 * min(len(ids) + 1, 16) + 3,
        key=f"adapters-{version}-{hash(tuple(ids))}",
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [index for index, one in enumerate(ids) if one in wanted]}},
        alt="Adapters that pass the filter, in its order",
    )
    ticked = [ids[row] for row in state["selection"]["rows"] if row < len(ids)]
    picked = listing.selection(wanted, ids, ticked)
    if picked != elements.wanted_ids():
        elements.remember_ids(picked)
    known = {one.adapter_id: one for one in (*selected, *adapters)}
    return [known[one] for one in picked]


def _act_on(selected: Sequence[Adapter], *, elsewhere: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.text(f"{len(selected)} selected" + (f", {elsewhere} of them not on this page" if elsewhere else ""))
        actions.links(selected)
        actions.tag(selected)
        actions.discard(selected)
        st.button("Clear selection", type="tertiary", disabled=not selected, on_click=_clear)


def _clear() -> None:
    elements.remember_ids([])
    st.session_state["adapters_version"] += 1


render()
