"""What can be done with chosen adapters: the pages that take them, and the changes that the dashboard's role allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import streamlit as st

from rankloom_dashboard import access, adapter_reads, changes, elements
from rankloom_dashboard.access import Role
from rankloom_dashboard.adapter_list import described
from rankloom_dashboard.errors import ForbiddenError
from rankloom_registry import Adapter, RegistryError

MOST_PLAYED = 3
# Label, page, the query parameter that takes the adapters, and how many it takes at least and at most.
_LINKS = (
    ("Open", elements.ADAPTER, "adapter", 1, 1),
    ("Compare", elements.COMPARE, "ids", 2, elements.MOST_COMPARED),
    ("Evaluate", elements.EVALUATE, "ids", 1, elements.MOST_COMPARED),
    ("Playground", elements.PLAYGROUND, "ids", 1, MOST_PLAYED),
    ("Promote", elements.PROMOTE, "adapter", 1, 1),
)
_ONLY_FILES = (elements.EVALUATE, elements.PLAYGROUND, elements.PROMOTE)


def links(adapters: Sequence[Adapter], *, on: str = elements.ADAPTERS) -> None:
    """Shows a link to each page that takes adapters; one that does not take these is disabled, and says why.

    Args:
        adapters: The chosen adapters.
        on: The page that this is.
    """
    ids = [adapter.adapter_id for adapter in adapters]
    gone = any(adapter.status != "available" for adapter in adapters)
    for label, page, parameter, least, most in _LINKS:
        if page == on or (on == elements.COMPARE and most == 1) or not _exists(page):
            continue
        if on == elements.ADAPTER:
            least = 1  # the page of comparisons lets one choose what to compare it with
        takes = "one adapter" if most == 1 else f"{least} to {most} adapters"
        needs_files = page in _ONLY_FILES
        st.page_link(
            page,
            label=label,
            query_params={parameter: ",".join(ids)} if ids else None,
            disabled=not least <= len(ids) <= most or (needs_files and gone),
            help=f"Takes {takes}{' whose files are there' if needs_files else ''}.",
        )


def _exists(page: str) -> bool:
    return Path(__file__).parent.joinpath(page).exists()


def tag(adapters: Sequence[Adapter]) -> None:
    """Offers to add and to drop tags of the chosen adapters."""
    with _offered("Tag", "editor", enabled=bool(adapters)) as open_:
        if not open_:
            return
        _named(adapters)
        with st.form("tag", border=False):
            add = st.multiselect("Add tags", adapter_reads.facets().tags, key="tags_added", accept_new_options=True)
            theirs = sorted({one for adapter in adapters for one in adapter.tags})
            drop = st.multiselect("Remove tags", theirs, key="tags_removed")
            asked = st.form_submit_button("Change tags", key="tag_now", type="primary")
        if asked:

            def work() -> None:
                for adapter in adapters:
                    changes.annotate(adapter.adapter_id, add=tuple(add), drop=tuple(drop))

            carry_out(work, "The tags were changed.")


def describe(adapter: Adapter) -> None:
    """Offers to change an adapter's name, note and tags."""
    with _offered("Edit", "editor") as open_:
        if not open_:
            return
        with st.form("edit", border=False):
            name = st.text_input("Name", adapter.name, key="edit_name", help="Its aliases stay under the old name.")
            known = sorted({*adapter_reads.facets().tags, *adapter.tags})
            tags = st.multiselect("Tags", known, list(adapter.tags), key="edit_tags", accept_new_options=True)
            note = st.text_area("Note", adapter.note, key="edit_note", max_chars=10_000)
            asked = st.form_submit_button("Save", key="edit_now", type="primary")
        if asked:

            def work() -> None:
                changes.annotate(
                    adapter.adapter_id,
                    name=name if name != adapter.name else None,
                    note=note if note != adapter.note else None,
                    add=tuple(one for one in tags if one not in adapter.tags),
                    drop=tuple(one for one in adapter.tags if one not in tags),
                )

            carry_out(work, "The adapter was changed.")


def alias(adapter: Adapter) -> None:
    """Offers to let an alias mean an adapter, or nothing any more."""
    with _offered("Alias", "promoter", enabled=adapter.status == "available") as open_:
        if not open_:
            return
        st.caption("An alias of the adapter's name means one adapter at a time; it moves without a gap.")
        with st.form("alias", border=False):
            chosen = st.text_input("Alias", key="alias", placeholder="prod")
            why = st.text_input("Reason", key="alias_why")
            left, right = st.columns(2)
            move = left.form_submit_button("Move it here", key="alias_move", type="primary")
            drop = right.form_submit_button("Remove it", key="alias_drop", disabled=not adapter.aliases)
        if (move or drop) and not (chosen and why.strip()):
            st.error("An alias and a reason are needed.")
        elif move:
            carry_out(lambda: changes.move_alias(adapter.adapter_id, chosen, why=why), "The alias means this adapter.")
        elif drop:
            carry_out(lambda: changes.remove_alias(adapter.adapter_id, chosen, why=why), "The alias was removed.")


def discard(adapters: Sequence[Adapter]) -> None:
    """Offers to mark the chosen adapters as discarded, for a reason."""
    there = bool(adapters) and all(adapter.status == "available" for adapter in adapters)
    with _offered("Discard", "editor", enabled=there) as open_:
        if not open_:
            return
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
            carry_out(lambda: changes.discard(ids, reason=reason), "The adapters were discarded.")


@contextmanager
def _offered(label: str, role: Role, *, enabled: bool = True) -> Iterator[bool]:
    """Opens a box behind a button; says whether there may be anything in it."""
    allowed = access.may(role)
    reason = None if enabled else "Takes adapters whose files are there."
    with st.popover(label, disabled=not (allowed and enabled), help=reason if allowed else elements.needs(role)):
        yield allowed and enabled


def carry_out(work: Callable[[], object], done: str) -> None:
    """Makes a change and shows the page anew, or says why it was refused."""
    try:
        work()
    except (RegistryError, ForbiddenError) as error:
        elements.problem("The change was refused.", str(error))
    else:
        st.toast(done)
        st.rerun()


def _named(adapters: Sequence[Adapter]) -> None:
    st.text("\n".join(described(adapter) for adapter in adapters))
