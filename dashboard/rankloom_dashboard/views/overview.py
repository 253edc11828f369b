"""The leaderboard: what the registry holds, and how the trials of one search compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import streamlit as st

from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.charts.learning_curves import draw_learning_curves, learning_curves_info
from rankloom_dashboard.charts.search_history import draw_search_history, search_history_info
from rankloom_dashboard.charts.style import ROLE_COLORS, color_of, show
from rankloom_dashboard.leaderboard import STATES, adapter_rows, best_trial, gain, leaderboard_rows, prior_loss
from rankloom_registry import SearchRecord, TrialRecord

_REFRESH_SECONDS = 3.0
_SEARCH_BADGES: dict[str, Literal["green", "blue", "orange", "red"]] = {
    "running": "green",
    "completed": "blue",
    "interrupted": "orange",
    "failed": "red",
}
_TRIALS, _ADAPTERS = "Trials of this search", "All adapters"

_number = st.column_config.NumberColumn
_text = st.column_config.TextColumn
_HYPERPARAMETERS = {
    "r": _number("r", help="Rank of the update", width=50),
    "lora_alpha": _number("alpha", format="%.3g", width=60),
    "learning_rate": _number("learning rate", format="%.2e", width=95),
    "target_modules": _text("target modules", width=120),
}
_TRIAL_COLUMNS = {
    "rank": _number("#", width=40),
    "trial": _number("trial", width=50),
    "state": st.column_config.MultiselectColumn(
        "state", options=list(STATES.values()), color=[color_of(status) for status in STATES], width=110
    ),
    "eval_loss": _number("eval loss", format="%.4f", width=80),
    "gain": _number("gain", format="%+.4f", width=75, help="How far eval loss lies under that of trial 0"),
    **_HYPERPARAMETERS,
    "lora_dropout": _number("dropout", format="%.3g", width=70),
    "steps": _number("steps", width=55),
    "wall": _text("time", width=90),
    "adapter": _text("adapter", width=130),
    "message": _text("message"),
}
_ADAPTER_COLUMNS = {
    "name": _text("name", width=170),
    "aliases": st.column_config.ListColumn("aliases", width=100),
    "files": st.column_config.MultiselectColumn(
        "files", options=["available", "discarded"], color=[ROLE_COLORS["running"], ROLE_COLORS["stopped"]], width=95
    ),
    "eval_loss": _number("eval loss", format="%.4f", width=80),
    **_HYPERPARAMETERS,
    "search": _text("search"),
    "base": _text("base"),
    "created": _text("created", width=190),
    "adapter": _text("adapter"),
}


def render() -> None:
    """Shows the page."""
    st.title("Leaderboard")
    glance = data.glance()
    st.text(_contents(glance))
    if not glance.searches:
        if glance.adapters:
            _act_on(
                elements.pick_adapters(adapter_rows(glance.adapters), _ADAPTER_COLUMNS, key="adapters", alt=_ADAPTERS)
            )
        else:
            elements.nothing_yet("The registry is empty. A search fills it:", "rankloom quickstart")
        return
    searches = {search.search_id: search for search in glance.searches}
    chosen = elements.choose("Search", list(searches), key="search", show=lambda key: _name(searches[key]))
    live = searches[chosen].status == "running"
    st.fragment(_search, run_every=_REFRESH_SECONDS if live else None)(chosen, live=live)


def _contents(glance: data.Glance) -> str:
    newest = "the newest " if len(glance.adapters) == data.ADAPTERS_SHOWN else ""
    counts = (
        formats.counted(len(glance.searches), "search", "searches"),
        formats.counted(sum(search.trials for search in glance.searches), "trial", "trials"),
        newest + formats.counted(len(glance.adapters), "adapter", "adapters"),
        formats.counted(len(glance.bases), "base", "bases"),
        formats.counted(sum(item.status == "done" for item in glance.promotions), "promotion", "promotions"),
    )
    return f"{data.registry_path().name}: {' · '.join(counts)}"


def _name(search: SearchRecord) -> str:
    return f"{search.name} · {formats.when(search.created_at)[:16]} · {formats.shorten(search.search_id, 8)}"


def _search(search_id: str, *, live: bool) -> None:
    with elements.registry_problems():
        details = data.search_details(search_id)
        if live and details.search.status != "running":
            st.rerun()  # the whole page, which then no longer refreshes itself
        _summary(details.search, details.trials)
        if not details.trials:
            st.info("No trial has started yet.")
            return
        _charts(details)
        _tables(details.search, details.trials)


def _summary(search: SearchRecord, trials: Sequence[TrialRecord]) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        known = _SEARCH_BADGES.get(search.status)
        st.badge(search.status if known else "unknown state", color=known or "gray")
        st.text(
            f"started {formats.ago(search.created_at)} · base {formats.base(search.base_identity)} · "
            f"seed {formats.value(search.seed)}"
        )
    if search.status == "running" and search.num_samples:
        st.progress(
            min(1.0, search.finished_trials / search.num_samples),
            text=f"{search.finished_trials} of {search.num_samples} trials finished; this page refreshes itself",
        )
    if search.message:
        elements.problem("The search left a message:", search.message)
    best, prior = best_trial(trials), prior_loss(trials)
    won = gain(best.eval_loss, prior) if best else None
    times = [trial.wall_s for trial in trials if trial.wall_s is not None]
    elements.numbers(
        {
            "Best eval loss": formats.loss(best.eval_loss if best else None),
            "Gain over trial 0": formats.MISSING if won is None or not prior else f"{won:.4f} ({won / prior:.1%})",
            "Trials": f"{search.finished_trials} of {search.num_samples}",
            "Stopped early": formats.count(sum(trial.status == "stopped" for trial in trials)),
            "Failed": formats.count(sum(trial.status == "failed" for trial in trials)),
            "Trial time": formats.duration(sum(times) if times else None),
        }
    )


def _charts(details: data.SearchDetails) -> None:
    left, right = st.columns([3, 2], gap="medium")
    curves = learning_curves_info(details.trials, details.metrics)
    with left:
        st.subheader("Learning curves")
        if curves:
            show(
                draw_learning_curves(curves),
                key="curves",
                alt=f"Eval loss against step for {len(curves)} trials; the best is drawn thickest",
            )
            st.caption("One line a trial. Thin grey lines were stopped early; click a word above to hide its lines.")
        else:
            st.info("No trial has reported an eval loss yet.")
    info = search_history_info(details.trials)
    with right:
        st.subheader("Gain over the prior configuration")
        if info.points:
            show(
                draw_search_history(info),
                key="history",
                alt=f"Final eval loss of {len(info.points)} trials in the order of the search",
            )
            st.caption("Where each trial ended. The dashed level is trial 0, which ran the prior configuration.")
        else:
            st.info("No trial has ended with an eval loss yet.")


def _tables(search: SearchRecord, trials: Sequence[TrialRecord]) -> None:
    table = st.segmented_control(
        "Table",
        [_TRIALS, _ADAPTERS],
        default=_TRIALS,
        required=True,
        key="table",
        bind="query-params",
        label_visibility="collapsed",
    )
    if table == _ADAPTERS:
        rows = adapter_rows(data.glance().adapters)
        picked = elements.pick_adapters(rows, _ADAPTER_COLUMNS, key="adapters", alt="All adapters, newest first")
    else:
        rows = leaderboard_rows(trials)
        picked = elements.pick_adapters(
            rows, _TRIAL_COLUMNS, key=f"trials-{search.search_id}", alt="Trials ranked by eval loss"
        )
    _act_on(picked)


def _act_on(picked: Sequence[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(
            elements.ADAPTER,
            label="Open adapter",
            query_params={"adapter": picked[0]} if picked else None,
            disabled=len(picked) != 1,
        )
        st.page_link(
            elements.COMPARE,
            label="Compare adapters",
            query_params={"ids": ",".join(picked)} if picked else None,
            disabled=not 2 <= len(picked) <= elements.MOST_COMPARED,
        )
        st.caption("Select one row with an adapter to open it, two to four to compare them.")


render()
