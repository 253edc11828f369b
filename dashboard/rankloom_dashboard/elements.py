"""Building blocks of the pages.

What the registry holds was written by others: names, parameters and messages go to the page as text, code or table
cells only. Streamlit reads Markdown in titles, captions, alerts, links and metric values, so those take fixed words
and formatted numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import streamlit as st

from rankloom_dashboard import data, formats
from rankloom_dashboard.access import Role, Visitor, changes_allowed
from rankloom_dashboard.errors import ForbiddenError, LoginError
from rankloom_registry import RegistryError, RegistryNotFoundError

OVERVIEW, ADAPTER, COMPARE = "views/overview.py", "views/adapter.py", "views/compare.py"
SEARCH, ADAPTERS, PROMOTE = "views/search.py", "views/adapters.py", "views/promote.py"
EVALUATE, PLAYGROUND = "views/evaluate.py", "views/playground.py"
MOST_COMPARED = 6


@contextmanager
def registry_problems() -> Iterator[None]:
    """Turns a registry that is missing, busy or damaged into a message on the page."""
    try:
        yield
    except RegistryNotFoundError:
        nothing_yet("There is no registry here yet. A search makes one:", "rankloom quickstart")
        st.text(f"Looked for {data.registry_path()}")
        st.caption("Another file is opened with:")
        st.code("rankloom dashboard --registry PATH", language="bash")
    except RegistryError as error:
        problem("The registry could not be read.", str(error))
    except (ForbiddenError, LoginError) as error:
        problem("Nothing was changed.", str(error))


def attempt(change: Callable[..., object], *args: object) -> None:
    """Makes a change in a button's callback, and says what refuses it: a role may be gone since the page was drawn.

    Args:
        change: One of `changes`.
        *args: Its arguments.
    """
    with registry_problems():
        change(*args)


def door(address: str | None) -> None:
    """Shows the way in, and nothing else.

    Args:
        address: With which somebody logged in who may not look; None if nobody did.
    """
    st.title("rankloom")
    if address is None:
        st.info("This registry is shown to people who log in.")
        st.button("Log in", type="primary", on_click=st.login)
        return
    st.warning("You are logged in, but not among those who may see this registry. Whoever runs it can add you.")
    st.text(address)
    st.button("Log out", on_click=st.logout)


def mark(visitor: Visitor, *, changes: bool) -> None:
    """Shows what the visitor may do here and, where people log in, who they are and the way out.

    Args:
        visitor: Who looks.
        changes: Whether the server was started so that anybody may change anything.
    """
    with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", gap="small"):
        if visitor.who:
            st.text(visitor.who, width="content")
        if changes:
            role = visitor.role if visitor.who else "changes allowed"
            st.badge(role, icon=":material/edit:" if visitor.role != "viewer" else ":material/visibility:")
        else:
            st.badge(
                "read-only",
                icon=":material/lock:",
                color="gray",
                help="Nothing can be changed here. `rankloom dashboard --allow-changes` starts it so that one can.",
            )
        if visitor.who:
            st.button("Log out", type="tertiary", on_click=st.logout)


def nothing_yet(explanation: str, command: str) -> None:
    """Shows an empty state: fixed words, and the command that fills it."""
    st.info(explanation)
    st.code(command, language="bash")


def problem(explanation: str, detail: str = "") -> None:
    """Shows what went wrong: fixed words, and the detail as text."""
    st.error(explanation)
    if detail:
        st.code(formats.cut(detail, 10_000), language=None, wrap_lines=True)


def needs(role: Role) -> str:
    """Returns why a visitor may not press a button that needs a role."""
    if not changes_allowed():
        return "Read-only: `rankloom dashboard --allow-changes` starts it so that this can be done."
    return f"This needs the role {role}."


def fields(values: Mapping[str, str]) -> None:
    """Shows named values in as many columns as fit; names are fixed words, values are shown as text."""
    with st.grid(min_column_width=150, gap="small") as grid:
        for name, value in values.items():
            with grid.cell(), st.container(gap=None):
                st.caption(name)
                st.text(value)


def numbers(values: Mapping[str, str]) -> None:
    """Shows a row of bordered figures; names are fixed words and values formatted numbers."""
    with st.grid(len(values), min_column_width=130, gap="small"):
        for name, value in values.items():
            st.metric(name, value, border=True, height="stretch")


def hashes(values: Mapping[str, str | None]) -> None:
    """Shows long identifiers, each with a button that copies it."""
    for name, value in values.items():
        if value:
            st.caption(name)
            st.code(value, language=None, wrap_lines=True)


def choose(label: str, options: Sequence[str], *, key: str, show: Callable[[str], str]) -> str:
    """Shows a select box whose choice is the query parameter `key`, so that the address can be shared.

    Args:
        label: Fixed words.
        options: Identifiers, at least one; the first is the default.
        key: The query parameter.
        show: Names an identifier for the reader.

    Returns:
        The chosen identifier.
    """
    wanted = st.query_params.get(key)
    if wanted in options:
        st.session_state[key] = wanted
    elif st.session_state.get(key) not in options:
        st.session_state.pop(key, None)
    choice = st.selectbox(label, options, key=key, format_func=show, on_change=_remember, args=(key,))
    if wanted != choice:
        st.query_params[key] = choice
    return choice


def _remember(key: str) -> None:
    st.query_params[key] = st.session_state[key]


def wanted_ids() -> list[str]:
    """Returns the adapters that the address names in `ids`, each once."""
    return list(dict.fromkeys(part for part in st.query_params.get("ids", "").split(",") if part))


def remember_ids(ids: Sequence[str]) -> None:
    """Puts the chosen adapters into the address."""
    if ids:
        st.query_params["ids"] = ",".join(ids)
    else:
        st.query_params.pop("ids", None)


def pick_adapters(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any], *, key: str, alt: str) -> list[str]:
    """Shows a table whose rows can be selected; the selected adapters stand in the address.

    Args:
        rows: Plain rows with a column `adapter`, None where there is none to select.
        columns: Streamlit's column configuration, in the order to show; columns that it lacks are left out.
        key: Tells this table from others.
        alt: What the table holds, in fixed words.

    Returns:
        The selected adapters' identifiers.
    """
    wanted = wanted_ids()
    selected = [index for index, row in enumerate(rows) if row["adapter"] in wanted]
    # Streamlit remembers selected rows by position. A new order is a new table, which starts from the address again.
    order = hash(tuple(str(row.get("trial", row["adapter"])) for row in rows))
    state = st.dataframe(
        pd.DataFrame(rows, columns=list(columns)),
        column_config=dict(columns),
        hide_index=True,
        placeholder=formats.MISSING,
        key=f"{key}-{order}",
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": selected}},
        alt=alt,
    )
    picked = [rows[index]["adapter"] for index in state["selection"]["rows"] if rows[index]["adapter"]]
    if picked != wanted:
        remember_ids(picked)
    return picked
