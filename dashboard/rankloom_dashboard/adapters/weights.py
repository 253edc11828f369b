"""What the files of adapters say; remembered by their content, which does not change."""

from __future__ import annotations

import streamlit as st

from rankloom_dashboard import data
from rankloom_registry import Adapter, AdapterWeights, Registry, Similarity, compare_weights, read_weights


def of(adapter: Adapter) -> AdapterWeights:
    """Measures an adapter's updates.

    Raises:
        ArtifactError: Its files are gone or changed.
    """
    return _of(str(data.registry_path()), adapter.artifact_sha256, adapter)


def alike(first: Adapter, second: Adapter) -> Similarity:
    """Compares two adapters' updates.

    Raises:
        ArtifactError: The files of one of them are gone or changed.
    """
    return _alike(str(data.registry_path()), first.artifact_sha256, second.artifact_sha256, first, second)


@st.cache_data(max_entries=64, show_spinner=False)
def _of(path: str, sha256: str, _adapter: Adapter) -> AdapterWeights:
    with Registry.open(path, wait_s=data.WAIT_SECONDS) as registry:
        return read_weights(registry.checkout(_adapter))


@st.cache_data(max_entries=256, show_spinner=False)
def _alike(path: str, sha256: str, other_sha256: str, _first: Adapter, _second: Adapter) -> Similarity:
    with Registry.open(path, wait_s=data.WAIT_SECONDS) as registry:
        return compare_weights(registry.checkout(_first), registry.checkout(_second))
