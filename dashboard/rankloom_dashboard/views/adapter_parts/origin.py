"""Where an adapter came from, and what became of it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.charts.lineage import draw_lineage, lineage_info
from rankloom_dashboard.charts.style import show
from rankloom_registry import Adapter, BaseRecord


def lineage(details: data.AdapterDetails) -> None:
    """Draws the lineage, and lists it."""
    st.subheader("Lineage")
    if details.lineage is None:
        st.info("The registry has not seen this adapter's base, so it knows no lineage.")
        return
    info = lineage_info(details.lineage)
    words = ", ".join(dict.fromkeys(node.what for node in info.nodes))
    show(draw_lineage(info), key="lineage", alt=f"A tree of {len(info.nodes)} steps: {words}. The list below says all")
    if info.hidden:
        st.caption(f"{formats.counted(info.hidden, 'older step', 'older steps')} not drawn.")
    with st.expander("Lineage as a list"):
        st.dataframe(
            pd.DataFrame(
                {
                    "when": formats.when(step.at),
                    "step": step.what,
                    "what": formats.cut(step.text),
                    "id": formats.cut(step.id),
                }
                for step in details.lineage.steps()
            ),
            column_config={"what": st.column_config.TextColumn(width="large")},
            hide_index=True,
            alt="The steps of the lineage, from the base on",
        )


def base(adapter: Adapter, record: BaseRecord | None) -> None:
    """Shows the fingerprint of the adapter's base."""
    st.subheader("Base fingerprint")
    if record is None:
        st.info("The adapter names these base weights, but the registry has not seen them:")
        elements.hashes({"content root": adapter.base_content_root})
        st.code("rankloom base fingerprint PATH", language="bash")
        return
    elements.fields(
        {
            "dtype": formats.cut(record.dtype),
            "tensors": formats.count(record.tensors),
            "parameters": formats.count(record.parameters),
            "size": formats.size(record.bytes),
        }
    )
    elements.hashes(
        {
            "identity": formats.cut(record.identity),
            "content root (every weight)": record.content_root,
            "structure (names and shapes)": record.structure,
            "tokenizer": record.tokenizer_sha256,
            "chat template": record.chat_template_sha256,
            "quantization": record.quantization_sha256,
        }
    )
