"""One adapter: what it was trained with, what it belongs to, and what became of it."""

from __future__ import annotations

import json
import shlex

import pandas as pd
import streamlit as st

from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.charts.learning_curves import curve, draw_compared_curves
from rankloom_dashboard.charts.style import show
from rankloom_dashboard.leaderboard import gain, usable_loss
from rankloom_registry import Adapter, AdapterNotFoundError, ArtifactError, BaseRecord

_SHOWN = {"r", "lora_alpha", "use_rslora", "lora_dropout", "learning_rate", "target_modules", "seed"}


def render() -> None:
    """Shows the page."""
    st.title("Adapter")
    adapters = {adapter.adapter_id: adapter for adapter in data.glance().adapters}
    if not adapters:
        elements.nothing_yet("The registry holds no adapters yet. A search makes them:", "rankloom quickstart")
        return
    wanted = st.query_params.get("adapter")
    if wanted and wanted not in adapters:
        try:
            found = data.adapter_details(wanted).adapter
        except AdapterNotFoundError as error:
            elements.problem("The address names an adapter that is not in this registry.", str(error))
            del st.query_params["adapter"]
        else:
            adapters[found.adapter_id] = found
            st.query_params["adapter"] = found.adapter_id
    chosen = elements.choose("Adapter", list(adapters), key="adapter", show=lambda key: _name(adapters[key]))
    _details(data.adapter_details(chosen))


def _name(adapter: Adapter) -> str:
    aliases = "".join(f" @{alias}" for alias in adapter.aliases)
    return (
        f"{adapter.name}{aliases} · eval loss {formats.loss(adapter.eval_loss)} · {formats.shorten(adapter.adapter_id)}"
    )


def _details(details: data.AdapterDetails) -> None:
    adapter = details.adapter
    prior = usable_loss(details.prior.eval_loss) if details.prior else None
    won = gain(adapter.eval_loss, prior)
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
    left, right = st.columns(2, gap="medium")
    with left:
        _configuration(adapter)
        _base(adapter, details.base)
    with right:
        _curve(details)
        _next_step(adapter)
        _files(adapter)
    _records(details)


def _configuration(adapter: Adapter) -> None:
    st.subheader("Configuration")
    elements.fields(
        {
            "r": formats.value(adapter.r),
            "alpha": formats.value(adapter.lora_alpha),
            "rank-stabilised": formats.value(adapter.use_rslora),
            "dropout": formats.value(adapter.lora_dropout),
            "learning rate": formats.value(adapter.learning_rate),
            "target modules": formats.value(adapter.target_modules),
            "seed": formats.value(adapter.seed),
            "search": formats.value(adapter.search_name),
            "trial": formats.value(adapter.trial_number),
            "made": formats.when(adapter.created_at),
        }
    )
    others = {key: formats.value(item) for key, item in sorted(adapter.params.items()) if key not in _SHOWN}
    if others:
        with st.expander("Other parameters"):
            st.dataframe(
                pd.DataFrame(others.items(), columns=["parameter", "value"]), hide_index=True, alt="Other parameters"
            )


def _next_step(adapter: Adapter) -> None:
    st.subheader("Next step")
    if adapter.status != "available":
        st.info("Its files were not kept, so it cannot be promoted. Another adapter of the search can.")
        return
    st.caption("Merges the adapter into the full-precision base, checks the result and writes it to a folder.")
    registry = shlex.quote(str(data.registry_path()))
    st.code(
        f"rankloom promote {shlex.quote(adapter.adapter_id)} --output DIR --registry {registry}",
        language="bash",
        wrap_lines=True,
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


def _base(adapter: Adapter, base: BaseRecord | None) -> None:
    st.subheader("Base fingerprint")
    if base is None:
        st.info("The adapter names these base weights, but the registry has not seen them:")
        elements.hashes({"content root": adapter.base_content_root})
        st.code("rankloom base fingerprint PATH", language="bash")
        return
    elements.fields(
        {
            "identity": base.identity,
            "dtype": base.dtype,
            "tensors": formats.count(base.tensors),
            "parameters": formats.count(base.parameters),
            "size": formats.size(base.bytes),
        }
    )
    elements.hashes(
        {
            "content root (every weight)": base.content_root,
            "structure (names and shapes)": base.structure,
            "tokenizer": base.tokenizer_sha256,
            "chat template": base.chat_template_sha256,
        }
    )


def _files(adapter: Adapter) -> None:
    st.subheader("Files")
    if adapter.status != "available":
        st.info("The files of this adapter were dropped: it was recorded, but not among the best.")
        return
    # Without a folder they lie at a URL, from where a promotion fetches them.
    folder = None if adapter.artifact_path is None else str(adapter.artifact_path)
    elements.hashes({"folder": folder, "SHA-256": adapter.artifact_sha256})
    if st.button("Verify files", help="Hashes the files again and compares; nothing is changed."):
        try:
            with st.spinner("Hashing the files"):
                data.verify(adapter)
        except ArtifactError as error:
            elements.problem("The files are not what the registry recorded.", str(error))
        else:
            st.success("The files are what the registry recorded.")


def _records(details: data.AdapterDetails) -> None:
    left, right = st.columns(2, gap="medium")
    name = shlex.quote(details.adapter.adapter_id)
    with left:
        st.subheader("Evaluations")
        if details.evaluations:
            st.dataframe(
                pd.DataFrame(
                    {
                        "when": formats.when(record.created_at),
                        "dataset": formats.value(record.dataset.get("name", record.dataset)),
                        "metrics": ", ".join(f"{key} {formats.value(item)}" for key, item in record.metrics.items()),
                    }
                    for record in details.evaluations
                ),
                hide_index=True,
                alt="Evaluations, newest first",
            )
        elif details.adapter.status == "available":
            elements.nothing_yet("Not evaluated on other data yet.", f"rankloom evaluate {name} --dataset FILE")
        else:
            st.info("Never evaluated on other data.")
    with right:
        st.subheader("Promotions")
        if details.promotions:
            st.dataframe(
                pd.DataFrame(
                    {
                        "when": formats.when(record.created_at),
                        "outcome": record.status + (" (forced)" if record.forced else ""),
                        "recipe": record.recipe,
                        "format": record.format,
                        "output": record.output_path,
                        "reason": record.reason,
                    }
                    for record in details.promotions
                ),
                hide_index=True,
                alt="Promotions, newest first",
            )
        else:
            st.info("Not promoted yet.")
    st.subheader("History")
    st.dataframe(
        pd.DataFrame(
            {
                "when": formats.when(event.at),
                "event": event.kind,
                "who": event.who,
                "details": json.dumps(event.payload, default=str, sort_keys=True),
            }
            for event in details.events
        ),
        column_config={"details": st.column_config.TextColumn(width="large")},
        hide_index=True,
        alt="Events about this adapter, newest first",
    )


render()
