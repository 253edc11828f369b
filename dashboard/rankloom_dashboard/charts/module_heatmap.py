"""A figure of each module's update, over layers and kinds of modules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

from rankloom_dashboard.charts.style import lay_out, plain
from rankloom_registry import ModuleWeights

Figure = Literal["frobenius_norm", "effective_rank"]
NAMES: Mapping[Figure, str] = {"frobenius_norm": "update norm", "effective_rank": "effective rank"}
OUTSIDE = "–"  # the column of modules that are in no layer
MOST_ROWS = 48
_LAYER = re.compile(r"(?:(.*?)\.)?(\d+)\.(.+)")
_EXPERT = re.compile(r"\.\d+(?=\.|$)")
# Transparent where there is least, so that it holds on a light ground and on a dark one.
_SCALE = ((0, "rgba(99,102,241,0.05)"), (1, "rgba(99,102,241,1)"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleHeatmapInfo:
    """A figure by kind of module and layer.

    Attributes:
        figure: Which.
        kinds: The rows: a module's name within its layer, or its whole name if it is in none.
        layers: The columns: numbers of layers, and `OUTSIDE` where a module is in none.
        values: A row a kind; None where there is no such module, or its update is dead.
        told: What there is to say of each cell; empty where there is no module.
        merged: Whether the experts of a mixture share a row, of their mean, since there are so many.
    """

    figure: Figure
    kinds: tuple[str, ...]
    layers: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    told: tuple[tuple[str, ...], ...]
    merged: bool


def place(module: str) -> tuple[str, int | None, str]:
    """Takes a module's name apart.

    Args:
        module: Such as `model.layers.3.self_attn.q_proj` or `lm_head`.

    Returns:
        What stands before the layer's number, the number, and what stands after it; if there is no number, the whole
        name is last. A second number, such as an expert's, belongs to what stands after the layer's.
    """
    match = _LAYER.fullmatch(module)
    return (match[1] or "", int(match[2]), match[3]) if match else ("", None, module)


def module_heatmap_info(modules: Sequence[ModuleWeights], figure: Figure) -> ModuleHeatmapInfo:
    """Collects a figure of each module.

    Args:
        modules: An adapter's, in any order.
        figure: Which figure.

    Returns:
        Rows in the order in which the names first come up, modules outside layers last.
    """
    places = {one.module: place(one.module) for one in modules}
    stacks = {stack for stack, layer, _ in places.values() if layer is not None}

    def kind(name: str) -> str:
        stack, layer, rest = places[name]
        # Two stacks, such as a picture's and a text's, number their layers alike.
        return f"{stack}.{rest}" if layer is not None and len(stacks) > 1 else rest

    merged = len({kind(name) for name in places}) > MOST_ROWS
    cells: dict[tuple[str, int | None], list[ModuleWeights]] = {}
    for one in modules:
        _, layer, _ = places[one.module]
        row = _EXPERT.sub(".*", kind(one.module)) if merged and layer is not None else kind(one.module)
        cells.setdefault((row, layer), []).append(one)
    inside = list(dict.fromkeys(row for row, layer in cells if layer is not None))
    outside = [row for row, layer in cells if layer is None]
    layers: list[int | None] = [*sorted({layer for _, layer in cells if layer is not None})]
    if outside:
        layers.append(None)
    kinds = (*inside, *outside)
    return ModuleHeatmapInfo(
        figure=figure,
        kinds=kinds,
        layers=tuple(OUTSIDE if layer is None else str(layer) for layer in layers),
        values=tuple(tuple(_value(cells.get((row, layer), ()), figure) for layer in layers) for row in kinds),
        told=tuple(tuple(_told(cells.get((row, layer), ())) for layer in layers) for row in kinds),
        merged=merged,
    )


def draw_module_heatmap(info: ModuleHeatmapInfo) -> go.Figure:
    """Draws a cell a module; the first kind is the top row."""
    figure = go.Figure(
        go.Heatmap(
            x=info.layers,
            y=[plain(kind) for kind in info.kinds],
            z=info.values,
            text=[[plain(text) for text in row] for row in info.told],
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            colorscale=_SCALE,
            colorbar={
                "title": {"text": NAMES[info.figure], "side": "right"},
                "thickness": 10,
                "outlinewidth": 0,
                "len": 1,
            },
            xgap=1,
            ygap=1,
        )
    )
    lay_out(figure, x="layer", y="", height=90 + 26 * max(4, len(info.kinds)))
    figure.update_xaxes(type="category", showgrid=False, nticks=9, tickangle=0)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def _value(modules: Sequence[ModuleWeights], figure: Figure) -> float | None:
    alive = [getattr(one, figure) for one in modules if not one.dead]
    return sum(alive) / len(alive) if alive else None


def _told(modules: Sequence[ModuleWeights]) -> str:
    if not modules:
        return ""
    one = modules[0]
    if len(modules) > 1:
        return f"mean of {len(modules)} modules like {one.module}"
    dead = " · dead" if one.dead else ""
    return (
        f"{one.module} · norm {one.frobenius_norm:.4g} · spectral norm {one.spectral_norm:.4g} · "
        f"effective rank {one.effective_rank:.2f} of {one.r}{dead}"
    )
