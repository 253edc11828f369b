"""Promotion: from an adapter to a model that is checked, measured and let out, and back."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

import streamlit as st

from rankloom.errors import RankloomError
from rankloom_dashboard import access, changes, data, elements, formats, verification
from rankloom_dashboard.adapters.listing import described
from rankloom_dashboard.errors import DashboardError
from rankloom_dashboard.evaluations import reads
from rankloom_dashboard.gates import gates_info, recorded_gates
from rankloom_dashboard.jobs.job import Job, board
from rankloom_dashboard.promotion_view import show_comparison, show_gates, show_made
from rankloom_registry import Adapter, AdapterNotFoundError, PromotionRecord, RegistryError

_LOOK_S = 1.0
_FORMATS = {
    "safetensors": "a merged model, for transformers and every engine that serves it",
    "nf4": "a merged model, in 4 bits again",
    "gguf": "a merged model for llama.cpp and Ollama",
    "adapter": "the adapter alone, to be served on its base",
}
_RECIPES = {
    "full-precision": "into the base as it was published",
    "as-trained": "into the base as it was quantized, which is the model that was measured",
}
_GGUF = {"gguf": ("q8_0", "f32", "bf16", "f16", "q5_1", "q4_1"), "adapter": ("none", "f16", "bf16", "f32")}


def render() -> None:
    """Shows the page."""
    st.title("Promote")
    adapter = _choose()
    if adapter is None:
        return
    details = data.adapter_details(adapter.adapter_id)
    job = _job(adapter)
    if job is not None:
        running = job.state == "running"
        st.fragment(_progress, run_every=_LOOK_S if running else None)(job, adapter, running=running)
        if running:
            return
    if adapter.status == "available":
        _form(adapter, again=job is not None)
    else:
        st.info("The files of this adapter were not kept, so it cannot be promoted.")
    _past(details)


def _choose() -> Adapter | None:
    newest = {adapter.adapter_id: adapter for adapter in reads.available_adapters()}
    wanted = st.query_params.get("adapter")
    found = None
    if wanted and wanted not in newest:
        try:
            found = data.adapter_details(wanted).adapter
            newest[found.adapter_id] = found
            st.query_params["adapter"] = found.adapter_id
        except AdapterNotFoundError as error:
            elements.problem("The address names an adapter that is not in this registry.", str(error))
            del st.query_params["adapter"]
    if not newest:
        elements.nothing_yet("There is no adapter to promote yet. A search makes some:", "rankloom quickstart")
        return None
    chosen = elements.choose("Adapter", list(newest), key="adapter", show=lambda key: described(newest[key]))
    return newest[chosen]


def _job(adapter: Adapter) -> Job | None:
    """The promotion of this adapter that the address names, or the last one."""
    mine = [job for job in board().all("promote") if job.order["adapter"] == adapter.adapter_id]
    named = next((job for job in mine if job.job_id == st.query_params.get("job")), None)
    return named or next(iter(mine), None)


def _form(adapter: Adapter, *, again: bool) -> None:
    st.subheader("Promote it again" if again else "What to make")
    may = access.may("promoter")
    format = st.segmented_control(
        "Format", list(_FORMATS), default="safetensors", required=True, key="format", bind="query-params"
    )
    st.caption(f"{format}: {_FORMATS[format]}.")
    wishes: dict[str, Any] = {"format": format}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if format in ("safetensors", "gguf"):
            wishes["recipe"] = st.selectbox(
                "Recipe",
                list(_RECIPES),
                key="recipe",
                bind="query-params",
                format_func=lambda recipe: f"{recipe}: {_RECIPES[recipe]}",
            )
        if format in _GGUF:
            label = "Type of a GGUF LoRA beside it" if format == "adapter" else "Type of its numbers"
            kind = st.selectbox(label, _GGUF[format], key=f"gguf-{format}", bind="query-params")
            wishes["gguf_type"] = None if kind == "none" else kind
    if format != "adapter":
        with st.container(horizontal=True):
            if st.toggle("Compute every merged weight again", key="full", bind="query-params", help="Not samples only"):
                wishes["verify"] = "full"
            wishes["compare"] = st.toggle(
                "Compare the recipes",
                value=True,
                key="compare",
                bind="query-params",
                help="Measures the other recipe as well; needs the disk space of a second model for a while.",
            )
    with st.form("promotion"):
        output = st.text_input(
            "Folder to make, on the machine of this dashboard",
            value=_suggestion(adapter, format),
            help="Nothing is overwritten: it must not exist, or be empty.",
        )
        alias = st.text_input("Alias that moves to this adapter", placeholder="prod", help="Empty for none.")
        why = st.text_input(
            "Reason", key="why", placeholder="Why this one, for the record", help="It is recorded with your name."
        )
        with st.expander("Where the base is, and what it is measured by"):
            base = st.text_input("Folder of the base now", help="Empty for where it was.")
            dataset = st.text_input("Held-out rows", help="A .jsonl file; empty for those of the adapter's search.")
            wishes["tolerance"] = st.number_input(
                "Tolerance, nats a token",
                value=None,
                format="%.4f",
                help="How much the loss may lie above the adapter's; empty for a twentieth of what the adapter gained "
                "over its base, but not less than 0.05.",
            )
        st.caption(
            "The gates run one after the other; only if all are passed is the model let out and the alias moved."
        )
        sent = st.form_submit_button(
            "Promote", type="primary", disabled=not may, help=None if may else elements.needs("promoter")
        )
    texts = {"alias": alias, "base": base, "dataset": dataset}
    wishes |= {name: text.strip() or None for name, text in texts.items()}
    if sent:
        _start(adapter, output, why, wishes)
    with st.expander("The same on the command line"):
        st.code(_command(adapter, output, why, wishes), language="bash", wrap_lines=True)


def _suggestion(adapter: Adapter, format: str) -> str:
    kind = {"safetensors": "merged"}.get(format, format)
    folder = data.registry_path().parent / f"{adapter.name}-{kind}"
    others = (Path(f"{folder}-{number}") for number in count(2))
    return str(next(name for name in chain([folder], others) if not name.exists()))  # what is there would be refused


def _command(adapter: Adapter, output: str, why: str, wishes: dict[str, Any]) -> str:
    parts = ["rankloom", "promote", adapter.adapter_id, "--output", output or "DIR", "--format", wishes["format"]]
    for name in ("recipe", "gguf_type", "verify", "alias", "dataset", "base"):
        if wishes.get(name):
            parts += [f"--{name.replace('_', '-')}", wishes[name]]
    if wishes.get("compare") is False:
        parts.append("--no-compare")
    if wishes.get("tolerance") is not None:
        parts += ["--tolerance", str(wishes["tolerance"])]
    parts += ["--reason", why or "TEXT", "--registry", str(data.registry_path())]
    return shlex.join(parts)


def _start(adapter: Adapter, output: str, why: str, wishes: dict[str, Any]) -> None:
    try:
        job_id = changes.start_promotion(adapter.adapter_id, output, why=why, **wishes)
    except (DashboardError, RankloomError, RegistryError) as error:
        elements.problem("The promotion was not started.", str(error))
        return
    st.query_params["job"] = job_id
    st.rerun()


def _progress(job: Job, adapter: Adapter, *, running: bool) -> None:
    state = job.state
    if running and state != "running":
        st.rerun()  # the whole page: the registry has changed
    format = job.order["format"]
    stage, done, total = job.progress or ("", 0, 0)
    gates = (
        recorded_gates(format, job.result["checks"])
        if job.result
        else gates_info(format, job.told, stage, running=state == "running")
    )
    st.subheader("Gates")
    if state == "running":
        st.progress(min(1.0, done / total) if total else 0.0, text=f"Promoting as {format}; started {_age(job)}")
        st.text(stage or "starting")
        _cancel(job)
    show_gates(gates)
    drift = next((told for told in job.told if told.get("gate") == "drift"), {})
    match state:
        case "done" if job.result:
            st.success("It passed, and was let out." if drift.get("passed", True) else "It was let out all the same.")
            show_made(format, job.result["output"])
        case "failed" if drift.get("passed") is False and not job.order["force"]:
            elements.problem("The last gate refused the model: it was not let out.", formats.cut(job.error))
            _force(job, adapter)
        case "failed":
            elements.problem("The promotion failed: nothing was let out.", formats.cut(job.error))
        case "cancelled":
            st.warning("It was stopped. The same promotion goes on from where it was.")
    show_comparison(drift.get("measured", {}), drift.get("made"))


def _age(job: Job) -> str:
    return formats.ago(datetime.fromtimestamp(job.started, UTC))


def _cancel(job: Job) -> None:
    if access.may(changes.needed_to_cancel(job)):
        # By a callback: this fragment refreshes itself, and would lose a click.
        st.button(
            "Stop",
            help="The same promotion goes on later from where it was.",
            on_click=elements.attempt,
            args=(changes.cancel_job, job.job_id),
        )


def _force(job: Job, adapter: Adapter) -> None:
    if not access.may("promoter"):
        return
    with st.form("force", border=True):
        st.caption(
            "You can let it out all the same. It is merged and measured again, which takes as long, and it is recorded "
            "as forced. The other gates cannot be overridden."
        )
        why = st.text_input("Reason", key="force-why", placeholder="Why it should go out although it was refused")
        sent = st.form_submit_button("Let it out all the same")
    if sent:
        kept = {name: value for name, value in job.order.items() if name not in ("registry", "adapter", "reason")}
        _start(adapter, kept.pop("output"), why, kept | {"force": True})


def _past(details: data.AdapterDetails) -> None:
    st.subheader("Promotions of this adapter")
    promotions = details.promotions
    who = {event.payload.get("promotion_id"): event.who for event in details.events if event.kind == "promoted"}
    if not promotions:
        st.info("Not promoted yet.")
        return
    for record in promotions[:10]:
        forced = ", forced" if record.forced else ""
        outcome = record.status if record.status in ("done", "refused", "undone") else "unknown"
        label = f"{formats.when(record.created_at)} · {outcome}{forced}"
        with st.expander(label, key=f"promotion-{record.promotion_id}"):
            elements.fields(
                {
                    "format": formats.cut(record.format, 200),
                    "recipe": formats.cut(record.recipe, 200),
                    "alias": formats.cut(formats.value(record.alias), 200),
                    "by": formats.value(who.get(record.promotion_id)),
                }
            )
            if record.reason:
                st.caption("Reason")
                st.code(formats.cut(record.reason), language=None, wrap_lines=True)
            if record.status == "done":
                show_made(record.format, formats.cut(record.output_path, 4096))
                verification.offer_promotion(record)
            show_gates(recorded_gates(record.format, record.checks))
            measured = record.checks.get("measured")
            show_comparison(measured if isinstance(measured, dict) else {}, record.checks.get("made"))
    last = next((record for record in promotions if record.status == "done"), None)
    if last is not None:
        _undo(details.adapter, last)


def _undo(adapter: Adapter, last: PromotionRecord) -> None:
    may = access.may("promoter")
    with st.form("undo"):
        st.caption(f"Undo the promotion of {formats.when(last.created_at)}. What it wrote stays where it is.")
        if last.alias:
            st.caption("This alias means again what it meant before:")
            st.text(formats.cut(last.alias, 200))
        why = st.text_input("Reason", key="undo-why", placeholder="Why it is undone, for the record")
        sent = st.form_submit_button(
            "Undo the promotion", disabled=not may, help=None if may else elements.needs("promoter")
        )
    if sent:
        try:
            changes.undo_promotion(adapter.adapter_id, why=why)
        except (DashboardError, RegistryError) as error:
            elements.problem("Nothing was undone.", str(error))
            return
        st.rerun()


render()
