"""Choosing adapters for a page; the choice stands in the address."""

from __future__ import annotations

import streamlit as st

from rankloom_dashboard import data, elements
from rankloom_dashboard.adapters.listing import described
from rankloom_dashboard.evaluations import reads
from rankloom_registry import Adapter, AdapterNotFoundError


def choose_adapters(most: int, *, explanation: str) -> list[Adapter]:
    """Shows a box to choose adapters with files from, the newest of them and those that the address names.

    Args:
        most: How many can be chosen.
        explanation: Fixed words that stand with the box.

    Returns:
        The chosen ones, in the order chosen.
    """
    known = {adapter.adapter_id: adapter for adapter in reads.available_adapters()}
    found = []
    for wanted in list(dict.fromkeys(elements.wanted_ids()))[:most]:  # each may be a look into the registry
        try:
            adapter = known.get(wanted) or data.adapter_details(wanted).adapter
        except AdapterNotFoundError as error:
            elements.problem("The address names an adapter that is not in this registry.", str(error))
            continue
        if adapter.status == "available":
            known[adapter.adapter_id] = adapter
            found.append(adapter.adapter_id)
        else:
            elements.problem("The address names an adapter whose files were not kept.", adapter.adapter_id)
    # The address is what counts: a link to this page says what is chosen on it.
    st.session_state["chosen"] = list(dict.fromkeys(found))
    chosen = st.multiselect(
        "Adapters",
        list(known),
        key="chosen",
        format_func=lambda key: described(known[key]),
        max_selections=most,
        help=explanation,
        on_change=lambda: elements.remember_ids(st.session_state["chosen"]),
    )
    if chosen != elements.wanted_ids():
        elements.remember_ids(chosen)
    return [known[adapter_id] for adapter_id in chosen]
