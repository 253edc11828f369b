"""What can be done with chosen adapters: the pages that take them, and the changes that the dashboard's role allows."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from rankloom_dashboard import access, elements
from rankloom_dashboard.access import Role
from rankloom_dashboard.adapters import forms
from rankloom_registry import Adapter

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
        if page == on or (on == elements.COMPARE and most == 1):
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


def tag(adapters: Sequence[Adapter]) -> None:
    """Offers to add and to drop tags of the chosen adapters."""
    if _asked("Tag", "editor", adapters, enabled=bool(adapters)):
        forms.tag(adapters)


def describe(adapter: Adapter) -> None:
    """Offers to change an adapter's name, note and tags."""
    if _asked("Edit", "editor", [adapter]):
        forms.describe(adapter)


def alias(adapter: Adapter) -> None:
    """Offers to let an alias mean an adapter, or nothing any more."""
    if _asked("Alias", "promoter", [adapter], enabled=adapter.status == "available"):
        forms.alias(adapter)


def discard(adapters: Sequence[Adapter]) -> None:
    """Offers to mark the chosen adapters as discarded, for a reason."""
    there = bool(adapters) and all(adapter.status == "available" for adapter in adapters)
    if _asked("Discard", "editor", adapters, enabled=there):
        forms.discard(adapters)


def _asked(label: str, role: Role, adapters: Sequence[Adapter], *, enabled: bool = True) -> bool:
    """Shows a button that opens a form; says whether it is open, for these adapters."""
    allowed = access.may(role)
    reason = None if enabled else "Takes adapters whose files are there."
    form = (label, tuple(adapter.adapter_id for adapter in adapters))
    st.button(
        label,
        key=f"open_{label.lower()}",
        disabled=not (allowed and enabled),
        help=reason if allowed else elements.needs(role),
        on_click=forms.open_form,
        args=(form,),
    )
    return allowed and enabled and forms.is_open(form)
