"""From the base to what was exported: a tree of the steps of an adapter's life, a line each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import plotly.graph_objects as go

from rankloom_dashboard import formats
from rankloom_dashboard.charts.style import lay_out, plain
from rankloom_registry import Lineage

MOST = 40  # steps that are drawn
_LABEL = 40  # characters beside a node; pointing at it shows more
_COLORS = {
    "base": "#9CA3AF",
    "search": "#38A3C7",
    "trial": "#38A3C7",
    "adapter": "#6366F1",
    "evaluation": "#10B981",
    "promotion": "#F59E0B",
    "export": "#F59E0B",
    "alias": "#EC4899",
}
_SYMBOLS = {"adapter": "diamond", "export": "square", "alias": "star"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A step: what it was, what there is to say of it, and which node it came from."""

    what: str
    id: str
    text: str
    at: datetime
    depth: int
    parent: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageInfo:
    """The nodes from the base on, each after its parent; `hidden` is how many steps are left out before the last."""

    nodes: tuple[Node, ...]
    hidden: int


def lineage_info(lineage: Lineage, *, most: int = MOST) -> LineageInfo:
    """Makes a tree of a lineage: base, search, trial, adapter, and what became of the adapter, by time.

    Args:
        lineage: As the registry gives it.
        most: The most nodes; of what became of the adapter the last are kept.

    Returns:
        The tree. An export comes from its promotion, and so does an alias that was moved with it.
    """
    together = {(promotion.created_at, promotion.alias) for promotion in lineage.promotions if promotion.alias}
    nodes: list[Node] = []
    adapter = promotion = 0
    for step in lineage.steps():
        origin = step.what in ("base", "search", "trial", "adapter")
        if origin:
            parent = len(nodes) - 1 if nodes else None
        elif step.what == "export" or (step.what == "alias" and (step.at, step.id) in together):
            parent = promotion
        else:
            parent = adapter
        depth = 0 if parent is None else nodes[parent].depth + 1
        text = {"base": formats.base(step.text), "alias": f"{step.id}: {step.text}"}.get(step.what, step.text)
        nodes.append(Node(what=step.what, id=step.id, text=text, at=step.at, depth=depth, parent=parent))
        if step.what == "adapter":
            adapter = len(nodes) - 1
        elif step.what == "promotion":
            promotion = len(nodes) - 1
    return _shortened(nodes, adapter + 1, most)


def _shortened(nodes: list[Node], origin: int, most: int) -> LineageInfo:
    start = max(origin, len(nodes) - max(0, most - origin))
    kept = [*range(origin), *range(start, len(nodes))]
    # The promotion that an export came from may be gone; it then hangs on the adapter.
    places = {old: new for new, old in enumerate(kept)}
    result: list[Node] = []
    for old in kept:
        node = nodes[old]
        parent = None if node.parent is None else places.get(node.parent, origin - 1)
        depth = 0 if parent is None else result[parent].depth + 1
        result.append(Node(what=node.what, id=node.id, text=node.text, at=node.at, depth=depth, parent=parent))
    return LineageInfo(nodes=tuple(result), hidden=start - origin)


def draw_lineage(info: LineageInfo) -> go.Figure:
    """Draws the tree from the top: a line a node, further right the further from the base."""
    figure = go.Figure()
    xs: list[float | None] = []
    ys: list[float | None] = []
    for row, node in enumerate(info.nodes):
        if node.parent is not None:
            x = info.nodes[node.parent].depth
            xs += [x, x, node.depth, None]
            ys += [node.parent, row, row, None]
    figure.add_trace(
        go.Scatter(x=xs, y=ys, mode="lines", line={"color": "rgba(148,163,184,0.7)", "width": 1.5}, hoverinfo="skip")
    )
    figure.add_trace(
        go.Scatter(
            x=[node.depth for node in info.nodes],
            y=list(range(len(info.nodes))),
            mode="markers+text",
            marker={
                "color": [_COLORS.get(node.what, "#9CA3AF") for node in info.nodes],
                "symbol": [_SYMBOLS.get(node.what, "circle") for node in info.nodes],
                "size": [13 if node.what == "adapter" else 10 for node in info.nodes],
            },
            text=[f"  <b>{node.what}</b> {plain(formats.shorten(node.text, _LABEL))}" for node in info.nodes],
            textposition="middle right",
            cliponaxis=False,
            customdata=[
                f"{node.what} {plain(formats.cut(node.id, 80))}<br>{plain(formats.cut(node.text, 160))}<br>"
                f"{formats.when(node.at)}"
                for node in info.nodes
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    lay_out(figure, x="", y="", height=40 + 30 * len(info.nodes))
    figure.update_layout(showlegend=False)
    figure.update_xaxes(visible=False, range=[-0.4, 17], fixedrange=True)
    figure.update_yaxes(visible=False, range=[len(info.nodes) - 0.4, -0.6], fixedrange=True)
    return figure
