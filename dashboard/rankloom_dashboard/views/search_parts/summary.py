"""The state of a search, how far it is, and what it reached."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from rankloom_dashboard import elements, formats
from rankloom_dashboard.leaderboard import best_trial, gain, prior_loss
from rankloom_dashboard.views.search_parts.view import View

_BADGES: dict[str, Literal["green", "blue", "orange", "red"]] = {
    "running": "green",
    "completed": "blue",
    "interrupted": "orange",
    "failed": "red",
}


def show(view: View) -> None:
    """Shows it."""
    search = view.search
    with st.container(horizontal=True, vertical_alignment="center"):
        known = _BADGES.get(view.status)
        st.badge(view.status if known else "unknown state", color=known or "gray")
        st.text(
            f"started {formats.ago(search.created_at)} · base {formats.base(search.base_identity)} · "
            f"{search.mode} {search.metric} · seed {formats.value(search.seed)}"
        )
    if view.status != search.status:
        st.warning("The process that ran this search is gone, without a word. It can be resumed:")
        st.code("rankloom search CONFIG.yaml --resume", language="bash")
    if view.status == "running" and search.num_samples:
        st.progress(
            min(1.0, search.finished_trials / search.num_samples),
            text=f"{search.finished_trials} of {search.num_samples} trials finished; this page refreshes itself",
        )
    if search.message:
        elements.problem("The search left a message:", formats.shorten(search.message, 10_000))
    if view.substituted:
        st.warning(
            "This search optimised a metric that the registry keeps no values of. Trials are ranked by eval loss."
        )
    _numbers(view)


def _numbers(view: View) -> None:
    search, trials, objective = view.search, view.trials, view.objective
    best, prior = best_trial(trials, objective), prior_loss(trials, objective)
    value = objective.of(best) if best else None
    won = gain(value, prior, objective)
    times = [trial.wall_s for trial in trials if trial.wall_s is not None]
    elements.numbers(
        {
            f"Best {objective.name}": formats.loss(value),
            "Gain over trial 0": formats.MISSING if won is None else f"{won:+.4f}",
            "Trials": f"{search.finished_trials} of {search.num_samples}",
            "Stopped early": formats.count(sum(trial.status == "stopped" for trial in trials)),
            "Failed": formats.count(sum(trial.status == "failed" for trial in trials)),
            "Trial time": formats.duration(sum(times) if times else None),
            "Elapsed": formats.duration((view.until - search.created_at).total_seconds()),
        }
    )
