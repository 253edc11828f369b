"""Forms that change adapters, each in a box over the page, until it is sent or dismissed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from rankloom_dashboard import changes, elements
from rankloom_dashboard.adapters import reads
from rankloom_dashboard.adapters.listing import described
from rankloom_dashboard.errors import ForbiddenError
from rankloom_registry import Adapter, RegistryError

LONGEST_NOTE = 10_000  # characters
_OPEN, _DONE = "open_form", "change_done"


def open_form(form: object) -> None:
    """Opens a form; one that was open is closed."""
    st.session_state[_OPEN] = form


def is_open(form: object) -> bool:
    """Says whether a form is the open one."""
    return bool(st.session_state.get(_OPEN) == form)


def tell() -> None:
    """Says what was changed by the run before this one; a message of that run would be lost with it."""
    if done := st.session_state.pop(_DONE, None):
        st.toast(done)


def _close() -> None:
    st.session_state.pop(_OPEN, None)


@st.dialog("Tag adapters", on_dismiss=_close)
def tag(adapters: Sequence[Adapter]) -> None:
    """Adds and drops tags of adapters."""
    _named(adapters)
    with st.form("tag", border=False):
        known = reads.facets().tags
        add = st.multiselect("Add tags", known, key="tags_added", accept_new_options=True)
        theirs = sorted({one for adapter in adapters for one in adapter.tags})
        drop = st.multiselect("Remove tags", theirs, key="tags_removed")
        asked = st.form_submit_button("Change tags", key="tag_now", type="primary")
    if asked:

        def work() -> None:
            for adapter in adapters:
                changes.annotate(adapter.adapter_id, add=tuple(add), drop=tuple(drop))

        _carry_out(work, "The tags were changed.")


@st.dialog("Edit adapter", on_dismiss=_close)
def describe(adapter: Adapter) -> None:
    """Changes an adapter's name, note and tags."""
    shown = adapter.note[:LONGEST_NOTE]
    with st.form("edit", border=False):
        name = st.text_input("Name", adapter.name, key="edit_name", help="Its aliases stay under the old name.")
        known = sorted({*reads.facets().tags, *adapter.tags})
        tags = st.multiselect("Tags", known, list(adapter.tags), key="edit_tags", accept_new_options=True)
        note = st.text_area("Note", shown, key="edit_note", max_chars=LONGEST_NOTE)
        asked = st.form_submit_button("Save", key="edit_now", type="primary")
    if asked:

        def work() -> None:
            changes.annotate(
                adapter.adapter_id,
                name=name if name != adapter.name else None,
                note=note if note != shown else None,
                add=tuple(one for one in tags if one not in adapter.tags),
                drop=tuple(one for one in adapter.tags if one not in tags),
            )

        _carry_out(work, "The adapter was changed.")


@st.dialog("Alias", on_dismiss=_close)
def alias(adapter: Adapter) -> None:
    """Lets an alias mean an adapter, or nothing any more."""
    st.caption("An alias of the adapter's name means one adapter at a time; it moves without a gap.")
    with st.form("alias", border=False):
        chosen = st.text_input("Alias", key="alias_name", placeholder="prod")
        why = st.text_input("Reason", key="alias_why")
        with st.container(horizontal=True):
            move = st.form_submit_button("Move it here", key="alias_move", type="primary")
            drop = st.form_submit_button("Remove it", key="alias_drop", disabled=not adapter.aliases)
    if (move or drop) and not (chosen and why.strip()):
        st.error("An alias and a reason are needed.")
    elif move:
        _carry_out(lambda: changes.move_alias(adapter.adapter_id, chosen, why=why), "The alias means this adapter.")
    elif drop:
        _carry_out(lambda: changes.remove_alias(adapter.adapter_id, chosen, why=why), "The alias was removed.")


@st.dialog("Discard adapters", on_dismiss=_close)
def discard(adapters: Sequence[Adapter]) -> None:
    """Marks adapters as discarded, for a reason."""
    st.warning("What is known of them stays. Their files go with the next `rankloom registry gc`.")
    _named(adapters)
    with st.form("discard", border=False):
        reason = st.text_input("Reason", key="discard_reason")
        count = "1 adapter" if len(adapters) == 1 else f"{len(adapters)} adapters"
        asked = st.form_submit_button(f"Discard {count}", key="discard_now", type="primary")
    if asked and not reason.strip():
        st.error("A reason is needed.")
    elif asked:
        ids = tuple(adapter.adapter_id for adapter in adapters)
        _carry_out(lambda: changes.discard(ids, reason=reason), "The adapters were discarded.")


def _carry_out(work: Callable[[], object], done: str) -> None:
    """Makes a change, closes the form and shows the page anew, or says why the change was refused."""
    try:
        work()
    except (RegistryError, ForbiddenError) as error:
        elements.problem("The change was refused.", str(error))
        return
    _close()
    st.session_state[_DONE] = done
    st.rerun()


def _named(adapters: Sequence[Adapter]) -> None:
    st.text("\n".join(described(adapter) for adapter in adapters))
