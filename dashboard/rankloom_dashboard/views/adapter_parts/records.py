"""What was measured and done with an adapter, and everything that was recorded about it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.adapters.intervals import promoted_change, written
from rankloom_registry import EventRecord, PromotionRecord

_CELL = 500  # characters of one value


def evaluations(details: data.AdapterDetails) -> None:
    """Lists the evaluations, newest first."""
    st.subheader("Evaluations")
    if details.evaluations:
        st.dataframe(
            pd.DataFrame(
                {
                    "when": formats.when(record.created_at),
                    "dataset": formats.cut(
                        formats.value(record.dataset.get("source") or record.dataset.get("name") or record.dataset),
                        _CELL,
                    ),
                    "rows": record.dataset.get("rows"),
                    "eval loss": written(record.metrics, "eval_loss"),
                    "base": written(record.metrics, "base_loss"),
                    "metrics": formats.cut(
                        ", ".join(f"{key} {formats.value(item)}" for key, item in record.metrics.items()), _CELL
                    ),
                }
                for record in details.evaluations
            ),
            column_config={"metrics": st.column_config.TextColumn(width="large")},
            hide_index=True,
            alt="Evaluations, newest first",
        )
    elif details.adapter.status == "available":
        command = f"rankloom evaluate {shlex.quote(details.adapter.adapter_id)} --dataset FILE --base-too"
        elements.nothing_yet("Not evaluated on other data yet.", command)
    else:
        st.info("Never evaluated on other data.")


def promotions(details: data.AdapterDetails) -> None:
    """Lists the promotions, newest first, each with what its checks found."""
    st.subheader("Promotions")
    if not details.promotions:
        if details.adapter.status == "available":
            command = f"rankloom promote {shlex.quote(details.adapter.adapter_id)} --output DIR"
            registry = shlex.quote(str(data.registry_path()))
            elements.nothing_yet("Not promoted yet.", f"{command} --registry {registry}")
        else:
            st.info("Never promoted, and its files were not kept.")
        return
    st.dataframe(
        pd.DataFrame(_promotion_row(record) for record in details.promotions),
        hide_index=True,
        alt="Promotions, newest first",
    )


def _promotion_row(record: PromotionRecord) -> dict[str, str]:
    drift = record.checks.get("drift")
    return {
        "when": formats.when(record.created_at),
        "outcome": record.status + (" (forced)" if record.forced else ""),
        "recipe": formats.cut(record.recipe, _CELL),
        "format": formats.cut(record.format, _CELL),
        "drift": formats.cut(formats.value(drift.get("verdict") if isinstance(drift, dict) else None), _CELL),
        "loss change": promoted_change(record.checks),
        "alias": formats.value(record.alias),
        "output": formats.cut(record.output_path, _CELL),
        "reason": formats.cut(record.reason, _CELL),
    }


def history(events: Sequence[EventRecord]) -> None:
    """Lists the events about an adapter, last first."""
    st.subheader("History")
    st.dataframe(
        pd.DataFrame(
            {
                "when": formats.when(event.at),
                "event": event.kind,
                "who": formats.cut(event.who, _CELL),
                "why": formats.cut(event.why, _CELL),
                "details": formats.cut(json.dumps(event.payload, default=str, sort_keys=True, ensure_ascii=False)),
            }
            for event in events
        ),
        column_config={"details": st.column_config.TextColumn(width="large")},
        hide_index=True,
        alt="Events about this adapter, newest first",
    )
