"""One adapter: what it was trained with, what its weights say, and what became of it."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.adapters import actions, forms, reads
from rankloom_dashboard.adapters.listing import described
from rankloom_dashboard.charts.learning_curves import curve, draw_compared_curves
from rankloom_dashboard.charts.style import show
from rankloom_dashboard.leaderboard import gain, usable_loss
from rankloom_dashboard.views.adapter_parts import configuration, modules, origin, records
from rankloom_registry import Adapter, AdapterNotFoundError


def render() -> None:
    """Shows the page."""
    st.title("Adapter")
    forms.tell()
    newest = reads.page()
    if not newest:
        elements.nothing_yet("The registry holds no adapters yet. A search makes them:", "rankloom quickstart")
        return
    details = _chosen({adapter.adapter_id: adapter for adapter in newest})
    if details is not None:
        _show(details)


def _chosen(offered: dict[str, Adapter]) -> data.AdapterDetails | None:
    """Offers adapters by name, and takes any reference that is typed; the address holds the adapter's id."""
    wanted = st.query_params.get("adapter") or next(iter(offered))
    details = None
    try:
        details = data.adapter_details(wanted)
    except AdapterNotFoundError as error:
        elements.problem("The address names an adapter that is not in this registry.", str(error))
        st.query_params.pop("adapter", None)
    else:
        offered[details.adapter.adapter_id] = details.adapter
        st.query_params["adapter"] = details.adapter.adapter_id
    st.session_state["chosen_adapter"] = details.adapter.adapter_id if details else None
    st.selectbox(
        "Adapter",
        list(offered),
        index=0 if details else None,
        key="chosen_adapter",
        format_func=lambda key: described(offered[key]) if key in offered else key,
        accept_new_options=True,
        placeholder="Choose one, or type an id, a name or name@alias",
        on_change=_remember,
    )
    return details


def _remember() -> None:
    st.query_params["adapter"] = st.session_state["chosen_adapter"] or ""


def _show(details: data.AdapterDetails) -> None:
    adapter = details.adapter
    _labels(adapter)
    with st.container(horizontal=True, vertical_alignment="center"):
        actions.links([adapter], on=elements.ADAPTER)
        actions.describe(adapter)
        actions.alias(adapter)
        actions.discard([adapter])
    _figures(details)
    parts = dict(zip(_PARTS, st.tabs(list(_PARTS), key="part", bind="query-params"), strict=True))
    for name, part in parts.items():
        if part.open:  # the others are not even read
            with part:
                _PARTS[name](details)


def _overview(details: data.AdapterDetails) -> None:
    left, right = st.columns(2, gap="medium")
    with left:
        configuration.configuration(details.adapter)
        _curve(details)
    with right:
        origin.lineage(details)
        configuration.copies(details.adapter)


def _weights(details: data.AdapterDetails) -> None:
    modules.heatmaps(details.adapter)


def _fingerprint(details: data.AdapterDetails) -> None:
    left, right = st.columns(2, gap="medium")
    with left:
        modules.files(details.adapter)
    with right:
        origin.base(details.adapter, details.base)


def _records(details: data.AdapterDetails) -> None:
    records.evaluations(details)
    records.promotions(details)
    records.history(details.events)


def _labels(adapter: Adapter) -> None:
    values = {
        "files": adapter.status,
        "aliases": ", ".join(f"{adapter.name}@{alias}" for alias in adapter.aliases),
        "tags": ", ".join(adapter.tags),
    }
    elements.fields({name: value for name, value in values.items() if value})
    if adapter.note:
        with st.container(gap=None):
            st.caption("note")
            st.text(formats.cut(adapter.note, 10_000))


def _figures(details: data.AdapterDetails) -> None:
    adapter = details.adapter
    won = gain(adapter.eval_loss, usable_loss(details.prior.eval_loss) if details.prior else None)
    elements.numbers(
        {
            "Eval loss": formats.loss(adapter.eval_loss),
            "Gain over trial 0": formats.MISSING if won is None else f"{won:+.4f}",
            "Train loss": formats.loss(adapter.train_loss),
            "Steps": formats.count(adapter.steps),
            "Train tokens": formats.count(adapter.train_tokens),
            "Peak memory": formats.size(adapter.peak_memory_bytes),
            "Time": formats.duration(adapter.wall_s),
        }
    )


def _curve(details: data.AdapterDetails) -> None:
    st.subheader("Learning curve")
    curves = [
        curve("eval loss", details.metrics),
        curve("train loss", details.metrics, loss="train_loss"),
    ]
    if not any(item.steps for item in curves):
        st.info("No steps were recorded for this adapter.")
        return
    show(draw_compared_curves(curves, y="loss"), key="curve", alt="Eval and train loss of this adapter against step")
    st.caption("Loss at each step that was reported: on held-out data, and on the training data.")


_PARTS: dict[str, Callable[[data.AdapterDetails], None]] = {
    "Overview": _overview,
    "Weights": _weights,
    "Fingerprint": _fingerprint,
    "Records": _records,
}

render()
