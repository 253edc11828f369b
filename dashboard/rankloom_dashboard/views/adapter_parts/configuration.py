"""What an adapter was trained with, and how to train or load it again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd
import streamlit as st

from rankloom.errors import RankloomError
from rankloom.models import split_identity
from rankloom_dashboard import data, elements, formats
from rankloom_dashboard.adapters import reads
from rankloom_registry import Adapter, ArtifactError
from rankloom_spaces import SpaceError

_SHOWN = {"r", "lora_alpha", "use_rslora", "lora_dropout", "learning_rate", "target_modules", "seed"}
_YAML, _PYTHON = "YAML", "Python"


def configuration(adapter: Adapter) -> None:
    """Shows the hyperparameters."""
    st.subheader("Configuration")
    elements.fields(
        {
            "r": formats.value(adapter.r),
            "alpha": formats.value(adapter.lora_alpha),
            "rank-stabilised": formats.value(adapter.use_rslora),
            "dropout": formats.value(adapter.lora_dropout),
            "learning rate": formats.value(adapter.learning_rate),
            "target modules": formats.cut(formats.value(adapter.target_modules)),
            "seed": formats.value(adapter.seed),
            "search": formats.value(adapter.search_name),
            "trial": formats.value(adapter.trial_number),
            "made": formats.when(adapter.created_at),
        }
    )
    others = {
        formats.cut(key): formats.cut(formats.value(item))
        for key, item in sorted(adapter.params.items())
        if key not in _SHOWN
    }
    if others:
        with st.expander("Other parameters"):
            st.dataframe(
                pd.DataFrame(others.items(), columns=["parameter", "value"]), hide_index=True, alt="Other parameters"
            )


def copies(adapter: Adapter) -> None:
    """Shows the configuration as a search file or as Python, each with a button that copies it."""
    st.subheader("Copy")
    form = st.segmented_control(
        "Copy as",
        [_YAML, _PYTHON],
        default=_YAML,
        required=True,
        key="copy",
        bind="query-params",
        label_visibility="collapsed",
    )
    try:
        text = reads.configuration(adapter, "yaml" if form == _YAML else "python")
    except (RankloomError, SpaceError, ArtifactError) as error:
        elements.problem("The configuration cannot be written in this form.", str(error))
        return
    st.code(formats.cut(text, 20_000), language="yaml" if form == _YAML else "python", height=_height(text))
    if form == _YAML:
        imported = "A space of one point, for a search file." if adapter.search_id is None else ""
        st.caption(imported or "A search file that trains this one point again: `rankloom search FILE.yaml`.")
    elif adapter.status == "available":
        st.caption("And to load the adapter, its files verified:")
        st.code(formats.cut(load_snippet(adapter, data.registry_path()), 20_000), language="python")


def load_snippet(adapter: Adapter, registry: Path) -> str:
    """Writes Python that loads an adapter on its base.

    Args:
        adapter: The adapter.
        registry: The registry's file.

    Returns:
        A program; what it loads is `model`. A base in GGUF is loaded as Transformers does it, by its file's name.
    """
    name, revision = split_identity(adapter.base_identity)
    options = {"revision": revision} if revision else {}
    if name.endswith(".gguf"):
        path = Path(name)
        name, options = str(path.parent), {"gguf_file": path.name}
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    return "\n".join(
        [
            "from peft import PeftModel",
            "from rankloom_registry import Registry",
            "from transformers import AutoModelForCausalLM",
            "",
            f"with Registry.open({str(registry)!r}) as registry:",
            f"    folder = registry.checkout(registry.adapter({adapter.adapter_id!r}))",
            f"base = AutoModelForCausalLM.from_pretrained({name!r}{given})",
            "model = PeftModel.from_pretrained(base, str(folder))",
            "",
        ]
    )


def _height(text: str) -> int | Literal["content"]:
    return 420 if text.count("\n") > 24 else "content"
