"""What of a registry needs attention, and how the overview shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pandas as pd
import streamlit as st

from rankloom_dashboard import access, data, elements, formats, upkeep
from rankloom_dashboard.jobs.job import Job, board
from rankloom_registry import SearchRecord, Summary

STAGES = {"starting": "starting", "verify files": "hashing the files of adapters"}  # what a job may say, for people
_ICONS = {"error": ":material/error:", "warning": ":material/warning:"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """Something that somebody should look at.

    Attributes:
        level: How much it matters.
        headline: Fixed words and numbers.
        advice: What to do, in fixed words.
        rows: What it is about, for a table.
    """

    level: Literal["error", "warning"]
    headline: str
    advice: str
    rows: Sequence[Mapping[str, Any]]


def concerns(
    summary: Summary,
    found: upkeep.Inspection | None,
    verified: Mapping[str, Any] | None,
    lost: Sequence[SearchRecord] = (),
) -> list[Concern]:
    """Says what needs attention, the worst first.

    Args:
        summary: The registry at a glance.
        found: What lies beside it; None while nobody has looked.
        verified: What `jobs.verifying.verify` found last, if anything.
        lost: Searches that are recorded as running and whose process is gone.
    """
    every = (
        *_files(found, verified),
        *_bases(summary, found),
        *_searches(summary, lost),
        *_refused(summary),
        *_failed(summary),
    )
    return sorted((concern for concern in every if concern.rows), key=lambda concern: concern.level != "error")


def _files(found: upkeep.Inspection | None, verified: Mapping[str, Any] | None) -> list[Concern]:
    missing = found.missing if found else ()
    failed = verified["failed"] if verified else []
    return [
        Concern(
            level="error",
            headline=f"{formats.counted(len(missing), 'adapter lacks its', 'adapters lack their')} files",
            advice="They cannot be loaded or promoted. Bring the artifacts folder back from a copy, or discard them.",
            rows=[{"adapter": adapter_id, "name": name} for adapter_id, name in missing[:200]],
        ),
        Concern(
            level="error",
            headline=f"{formats.counted(len(failed), 'adapter has', 'adapters have')} other files than were recorded",
            advice="Do not use them. Importing the same files again heals them; otherwise discard them.",
            rows=[
                {"adapter": one["adapter_id"], "name": one["name"], "what": formats.cut(one["problem"])}
                for one in failed[:200]
            ],
        ),
    ]


def _bases(summary: Summary, found: upkeep.Inspection | None) -> list[Concern]:
    states = found.bases if found else {}
    drifted = [base for base in summary.bases if states.get(base.content_root) == "differs"]
    gone = [base for base in summary.bases if states.get(base.content_root) == "not there"]
    return [
        Concern(
            level="error",
            headline=f"{formats.counted(len(drifted), 'base has', 'bases have')} drifted from what was recorded",
            advice="Its adapters cannot be evaluated or promoted until its weights are again what they were.",
            rows=[{"base": formats.cut(base.identity), "adapters": base.adapters} for base in drifted],
        ),
        Concern(
            level="warning",
            headline=f"{formats.counted(len(gone), 'base is', 'bases are')} no longer where it was read",
            advice="Evaluate and promote with --base, which names the place where it is now.",
            rows=[{"base": formats.cut(base.identity), "adapters": base.adapters} for base in gone],
        ),
    ]


def _searches(summary: Summary, lost: Sequence[SearchRecord]) -> list[Concern]:
    failed = [search for search in summary.searches if search.status == "failed"]
    return [
        Concern(
            level="error",
            headline=f"{formats.counted(len(lost), 'search', 'searches')} ended without a word",
            advice="Its process is gone. `rankloom search CONFIG.yaml --resume` goes on where it was.",
            rows=[{"search": search.name, "started": formats.ago(search.created_at)} for search in lost],
        ),
        Concern(
            level="error",
            headline=f"Of the latest searches {len(failed)} failed",
            advice="The message says why; `rankloom search CONFIG.yaml --resume` goes on where it was.",
            rows=[
                {
                    "search": search.name,
                    "ended": formats.ago(search.ended_at),
                    "message": formats.cut(search.message),
                }
                for search in failed
            ],
        ),
    ]


def _refused(summary: Summary) -> list[Concern]:
    refused = [promotion for promotion in summary.promotions if promotion.status == "refused"]
    total = summary.counts.refused_promotions
    return [
        Concern(
            level="warning",
            headline=f"{formats.counted(total, 'promotion was', 'promotions were')} refused by a gate",
            advice="The reason names what would pass.",
            rows=[
                {
                    "adapter": promotion.adapter_id,
                    "when": formats.ago(promotion.created_at),
                    "reason": formats.cut(promotion.reason),
                }
                for promotion in refused
            ],
        )
    ]


def _failed(summary: Summary) -> list[Concern]:
    return [
        Concern(
            level="warning",
            headline=f"{formats.counted(summary.counts.failed_trials, 'trial', 'trials')} failed",
            advice="The latest are these; a search goes on without them.",
            rows=[
                {
                    "search": trial.search_name,
                    "trial": trial.number,
                    "when": formats.ago(trial.ended_at),
                    "message": formats.cut(trial.message),
                }
                for trial in summary.failed
            ],
        )
    ]


def show(summary: Summary, found: upkeep.Inspection | None, lost: Sequence[SearchRecord]) -> None:
    """Shows what needs attention."""
    st.subheader("Needs attention")
    last = next((job for job in board().all("verify") if job.state == "done"), None)
    every = concerns(summary, found, last.result if last else None, lost)
    for at, concern in enumerate(every):
        with st.expander(concern.headline, icon=_ICONS[concern.level], key=f"concern-{at}"):
            st.caption(concern.advice)
            st.dataframe(pd.DataFrame(concern.rows), hide_index=True, alt=concern.headline)
    if found and found.problem:
        elements.problem("The files beside the registry could not be looked at.", found.problem)
    elif not every:
        st.success("Nothing that was looked at." if found else "Nothing so far; the disk is being looked at.")
    _verification(summary.counts.available, last)


def _verification(available: int, last: Job | None) -> None:
    """Offers to hash every adapter's files, and says when that was done last."""
    if not available:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Verify all files",
            help="Hashes the files of every adapter again; nothing is changed.",
            disabled=_verifying(),
            on_click=_verify,  # by a callback: this fragment refreshes itself, and would lose a click
        )
        if last and last.result:
            st.caption(
                f"{last.result['verified']} adapters verified {formats.ago(datetime.fromtimestamp(last.started, UTC))}."
            )
        else:
            st.caption("Not verified since this dashboard started.")
    ended = next((job for job in board().all("verify") if job.state != "running"), None)
    if ended is not None and ended.state == "failed":
        elements.problem("The files could not be verified.", ended.error)


def _verifying() -> bool:
    return any(job.state == "running" for job in board().all("verify"))


def _verify() -> None:
    visitor = access.require("viewer")
    if not _verifying():  # a page that was drawn before does not know of it
        board().start("verify", {"registry": str(data.registry_path())}, visitor.who)
