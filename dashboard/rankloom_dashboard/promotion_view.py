"""How a promotion is shown: its gates one after the other, what was measured, and how to load what it made."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from rankloom_dashboard import formats
from rankloom_dashboard.gates import Gate, State, comparison_rows

_ICONS: dict[State, str] = {
    "waiting": ":material/radio_button_unchecked:",
    "running": ":material/progress_activity:",
    "passed": ":material/check_circle:",
    "closed": ":material/cancel:",
}
_COLORS: dict[State, str] = {"waiting": "gray", "running": "blue", "passed": "green", "closed": "red"}
_number, _text = st.column_config.NumberColumn, st.column_config.TextColumn
_COLUMNS = {
    "model": _text("model", width=200, help="The star marks what is let out"),
    "rows": _text("rows", width=110, help="The rows that the search held out, or general text, and how many"),
    "loss": _number("loss", format="%.4f", width=70, help="Nats a token"),
    "loss interval": _text("95% interval", width=130, help="By a bootstrap over rows"),
    "difference": _number("difference", format="%+.4f", width=85, help="Its loss less that of the adapter as trained"),
    "difference interval": _text("95% interval ", width=140, help="By a paired bootstrap over rows"),
    "kl": _number("KL", format="%.4f", width=70, help="Of the adapter's predictions from its own, nats"),
    "top1": _number("same top token", format="percent", width=110),
}
_SNIPPETS = {
    "model": """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}
model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)""",
    "adapter": """from peft import AutoPeftModelForCausalLM
from transformers import BitsAndBytesConfig

model = AutoPeftModelForCausalLM.from_pretrained(
    {folder!r}, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), device_map="auto"
)""",
    "gguf": """cd {folder}
ollama create NAME -f Modelfile
ollama run NAME""",
}


def show_gates(gates: Sequence[Gate]) -> None:
    """Shows where the gates are, with their figures."""
    with st.container(border=True, gap="small"):
        for gate in gates:
            with st.container(gap=None):
                # An icon and fixed words are Markdown; the figures and what went wrong are text.
                st.markdown(f":{_COLORS[gate.state]}[{_ICONS[gate.state]}] **{gate.title}**")
                if gate.figures:
                    st.text(gate.figures)
                if gate.problem:
                    st.code(formats.cut(gate.problem), language=None, wrap_lines=True)


def show_comparison(measured: Mapping[str, Any], made: str | None) -> None:
    """Shows what was measured, each model beside the adapter as trained."""
    rows = comparison_rows(measured, made)
    if not rows:
        return
    st.subheader("What was measured")
    st.dataframe(
        pd.DataFrame(rows, columns=list(_COLUMNS)),
        column_config=_COLUMNS,
        hide_index=True,
        placeholder=formats.MISSING,
        alt="Loss, difference from the adapter as trained with its interval, and divergence, of each model measured",
    )
    st.caption("Loss in nats a token. An interval of a difference that lies below zero means that the model is better.")


def show_made(format: str, folder: str) -> None:
    """Shows where a promoted model lies and how to load it; both can be copied."""
    st.caption("It lies on the machine of this dashboard, at:")
    st.code(folder, language=None, wrap_lines=True)
    language = "bash" if format == "gguf" else "python"
    st.caption("Serve it with Ollama:" if format == "gguf" else "Load it:")
    st.code(snippet(format, folder), language=language)


def snippet(format: str, folder: str) -> str:
    """Returns the lines that load what a promotion made."""
    if format == "gguf":
        return _SNIPPETS["gguf"].format(folder=shlex.quote(folder))
    return _SNIPPETS["adapter" if format == "adapter" else "model"].format(folder=folder)
