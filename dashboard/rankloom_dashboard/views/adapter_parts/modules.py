"""What an adapter's weights say of each module, and whether its files are still what was registered."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from rankloom_dashboard import elements, formats, verification
from rankloom_dashboard.adapters import weights
from rankloom_dashboard.charts.module_heatmap import NAMES, draw_module_heatmap, module_heatmap_info
from rankloom_dashboard.charts.style import show
from rankloom_registry import Adapter, AdapterWeights, ArtifactError

_NAMED = 20  # tensors that are named


def files(adapter: Adapter) -> None:
    """Shows where the files are and their hash, and hashes them again if asked."""
    st.subheader("Files")
    if adapter.status != "available":
        st.info("The files of this adapter were dropped: it was recorded, but not among the best.")
        return
    # Without a folder they lie at a URL, from where a promotion fetches them.
    folder = None if adapter.artifact_path is None else str(adapter.artifact_path)
    signature = verification.signature(adapter)
    elements.hashes(
        {
            "folder": folder,
            "SHA-256": adapter.artifact_sha256,
            "signature": None if signature is None else str(signature),
        }
    )
    verification.offer_adapter(adapter)


def heatmaps(adapter: Adapter) -> None:
    """Draws the update norm and the effective rank of each module over layers and kinds of modules."""
    st.subheader("Weights")
    if adapter.status != "available":
        st.info("Its files were not kept, so there are no weights to look at.")
        return
    try:
        with st.spinner("Measuring the weights"):
            measured = weights.of(adapter)
    except ArtifactError as error:
        elements.problem("The weights cannot be read.", str(error))
        return
    elements.numbers(
        {
            "Update norm": formats.short(measured.update_norm),
            "Effective rank": "–" if measured.effective_rank is None else f"{measured.effective_rank:.2f}",
            "Modules": formats.count(len(measured.modules)),
            "Dead modules": formats.count(measured.dead_modules),
        }
    )
    if not measured.modules:
        st.info("No module has a low-rank update.")
    else:
        _draw(measured)
    if measured.other_tensors:
        st.caption("These tensors are no low-rank updates; the figures say nothing of them:")
        more = ["…"] if len(measured.other_tensors) > _NAMED else []
        st.code(formats.cut("\n".join([*measured.other_tensors[:_NAMED], *more])), language=None)


def _draw(measured: AdapterWeights) -> None:
    columns = st.columns(2, gap="medium")
    for column, (figure, name) in zip(columns, NAMES.items(), strict=True):
        info = module_heatmap_info(measured.modules, figure)
        with column:
            st.caption(f"{name.capitalize()} of each module")
            show(
                draw_module_heatmap(info),
                key=figure,
                alt=f"{name} of {len(measured.modules)} modules over {len(info.layers)} layers; the list below has all",
            )
    st.caption(
        "The norm is Frobenius', of scale · B·A. The effective rank is how many directions the update uses: 1 if one "
        "does it all, r if all do alike. An empty cell has no update, or a dead one."
    )
    if info.merged:
        st.caption("There are many experts: those of a kind share a row, of their mean.")
    with st.expander("Modules as a list"):
        st.dataframe(
            pd.DataFrame(
                {
                    "module": formats.cut(one.module, 300),
                    "shape": f"{one.shape[0]} × {one.shape[1]}",
                    "r": one.r,
                    "update norm": one.frobenius_norm,
                    "spectral norm": one.spectral_norm,
                    "effective rank": one.effective_rank,
                    "dead": one.dead,
                }
                for one in measured.modules
            ),
            column_config={"module": st.column_config.TextColumn(width="large")},
            hide_index=True,
            alt="Each module's update",
        )
