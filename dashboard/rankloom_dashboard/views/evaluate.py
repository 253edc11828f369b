"""Evaluations: start one, watch it, and see who wins which row, what is a difference, and what got worse."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import streamlit as st

from rankloom.evaluation.evaluate import METRICS
from rankloom.evaluation.tasks import tasks_installed
from rankloom_dashboard import access, changes, data, elements
from rankloom_dashboard.adapters import choosing
from rankloom_dashboard.errors import BusyError, ForbiddenError
from rankloom_dashboard.evaluations import reads, tables
from rankloom_dashboard.evaluations.report import show_run
from rankloom_dashboard.jobs.job import Job, board
from rankloom_registry import Adapter

_EVERY_S = 1.0


def render() -> None:
    """Shows the page."""
    st.title("Evaluate")
    if not reads.available_adapters():
        elements.nothing_yet(
            "No adapter with files is in the registry yet. A search makes them:", "rankloom quickstart"
        )
        return
    job = _job()
    with st.expander(
        "New evaluation", expanded=job is None and "evaluation" not in st.query_params, icon=":material/add:"
    ):
        _form(busy=job is not None and job.state == "running")
    if job is not None:
        _watch(job)
    _results()


def _job() -> Job | None:
    job_id = st.query_params.get("job")
    if job_id is None:
        return None
    job = board().find(job_id)
    if job is None or job.kind != "evaluate":
        st.info("The evaluation in the address ended some time ago; if it was recorded, it is below.")
        del st.query_params["job"]
        return None
    if job.state == "done" and job.result is not None:
        del st.query_params["job"]
        st.query_params["evaluation"] = job.result["run"]
        return None
    return job


def _form(*, busy: bool) -> None:
    adapters = choosing.choose_adapters(
        elements.MOST_COMPARED,
        explanation="Adapters of one base: they are measured on it one after the other, on the same rows.",
    )
    with st.grid(min_column_width=260):
        dataset = st.text_input(
            "Dataset",
            key="dataset",
            bind="query-params",
            placeholder="the held-out split of their search",
            help="A .jsonl, .json, .csv or .parquet file, or a folder, on the machine that serves this page.",
        )
        metrics = st.pills(
            "Metrics",
            METRICS,
            default=["loss"],
            selection_mode="multi",
            format_func=lambda name: tables.METRIC_NAMES[name],
            key="metrics",
            bind="query-params",
            help="Exact match and ROUGE-L compare what is generated greedily with the expected answer.",
        )
        tasks = st.text_input(
            "lm-eval tasks",
            key="tasks",
            bind="query-params",
            placeholder="hellaswag, arc_easy" if tasks_installed() else "needs rankloom[eval]",
            disabled=not tasks_installed(),
            help="Names of tasks whose data is on this machine already; nothing is downloaded.",
        )
        limit = st.number_input(
            "Rows at most",
            min_value=1,
            value=None,
            key="limit",
            bind="query-params",
            placeholder="all",
            help="The first ones only, for a quick look.",
        )
        tokens = st.number_input(
            "New tokens at most",
            min_value=1,
            max_value=4096,
            value=128,
            key="tokens",
            bind="query-params",
            help="For a row whose text is generated.",
        )
        base = st.text_input(
            "Base",
            key="at",
            bind="query-params",
            placeholder="where it was when they were trained",
            help="Where the base is now, if it moved: a folder or a .gguf file on the machine that serves this page.",
        )
    base_too = st.toggle("Measure the base as well, and compare with it", value=True, key="base", bind="query-params")
    wishes = {
        "dataset": dataset or None,
        "metrics": list(metrics),
        "tasks": [name for part in (tasks or "").split(",") if (name := part.strip())],
        "limit": limit,
        "max_new_tokens": tokens,
        "base_too": base_too,
        "base": base or None,
    }
    allowed = access.may("editor")
    nothing = not metrics and not wishes["tasks"]
    if st.button(
        "Start",
        type="primary",
        disabled=not adapters or not allowed or busy or nothing,
        help=None if allowed else elements.needs("editor"),
    ):
        _start(adapters, wishes)
    if adapters and not nothing:
        st.caption("The same on the command line:")
        st.code(command(adapters, wishes), language="bash", wrap_lines=True)


def _start(adapters: Sequence[Adapter], wishes: dict[str, Any]) -> None:
    try:
        job = changes.start_evaluation(tuple(adapter.adapter_id for adapter in adapters), **wishes)
    except (BusyError, ForbiddenError) as error:
        elements.problem("It was not started.", str(error))
        return
    st.query_params.pop("evaluation", None)
    st.query_params["job"] = job.job_id
    st.rerun()


def command(adapters: Sequence[Adapter], wishes: dict[str, Any]) -> str:
    """Returns what does the same on the command line."""
    parts = ["rankloom", "evaluate", *(adapter.adapter_id for adapter in adapters)]
    if wishes["base_too"]:
        parts.append("--base-too")
    for flag, value in (
        ("--dataset", wishes["dataset"]),
        ("--metrics", ",".join(wishes["metrics"]) or "none"),
        ("--tasks", ",".join(wishes["tasks"])),
        ("--limit", wishes["limit"]),
        ("--max-new-tokens", wishes["max_new_tokens"]),
        ("--base", wishes["base"]),
        ("--registry", data.registry_path()),
    ):
        if value:
            parts += [flag, str(value)]
    return shlex.join(parts)


def _watch(job: Job) -> None:
    if job.state == "running":
        st.fragment(_progress, run_every=_EVERY_S)(job)
        return
    if job.state == "cancelled":
        st.info("The evaluation was cancelled; nothing was recorded.")
    else:
        elements.problem("The evaluation failed; nothing was recorded.", job.error)
    if st.button("Dismiss"):
        del st.query_params["job"]
        st.rerun()


def _progress(job: Job) -> None:
    if job.state != "running":
        st.rerun()
    with st.container(border=True):
        st.badge("running", color="green", icon=":material/hourglass_top:")
        stage, done, total = job.progress or ("proving and loading the base", 0, 0)
        st.text(stage)
        st.progress(done / total if total else 0.0, text=f"{done} of {total}" if total else "starting")
        role = changes.needed_to_cancel(job)
        allowed = access.may(role)
        st.button(
            "Cancel",
            disabled=not allowed,
            help=None if allowed else elements.needs(role),
            on_click=elements.attempt,  # by a callback: this fragment refreshes itself, and would lose a click
            args=(changes.cancel_job, job.job_id),
        )


def _results() -> None:
    found = tables.runs(reads.evaluations())
    st.subheader("Results")
    if not found:
        elements.nothing_yet(
            "Nothing has been evaluated yet. Start one above, or on the command line:",
            "rankloom evaluate ADAPTER --base-too",
        )
        return
    by_run = {run.run: run for run in found}
    wanted = st.query_params.get("evaluation")
    if wanted is not None and wanted not in by_run:
        wanted = wanted.rpartition("-")[0]  # the id of a record, as other pages have it
        if wanted in by_run:
            st.query_params["evaluation"] = wanted
        else:
            st.info("The evaluation in the address is not among the newest of this registry.")
            del st.query_params["evaluation"]
    chosen = elements.choose("Evaluation", list(by_run), key="evaluation", show=lambda key: by_run[key].label)
    show_run(by_run[chosen])


render()
