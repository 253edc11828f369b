"""How alike the weights of some adapters are, each beside each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

from rankloom_dashboard.charts.style import lay_out, plain
from rankloom_registry import Similarity

Measure = Literal["cosine", "column_overlap", "row_overlap"]
# No colour lets the ground through: the numbers in the cells are drawn to contrast with them.
_SCALE = ((0, "#F59E0B"), (0.5, "#B6C0D0"), (1, "#6366F1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityInfo:
    """A symmetric matrix of how alike adapters are.

    Attributes:
        names: The adapters.
        values: A row an adapter; None where there is nothing to compare.
        shared: How many modules both update, a row an adapter; None for an adapter beside itself.
    """

    names: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    shared: tuple[tuple[int | None, ...], ...]


def similarity_info(
    names: Sequence[str], pairs: Mapping[tuple[int, int], Similarity], measure: Measure
) -> SimilarityInfo:
    """Lays pairs out as a matrix.

    Args:
        names: The adapters.
        pairs: By the places of two adapters, the smaller first; a pair that is missing stays empty.
        measure: Which figure.

    Returns:
        The matrix; an adapter is like itself.
    """
    places = range(len(names))

    def cell(row: int, column: int) -> tuple[float | None, int | None]:
        if row == column:
            return 1.0, None
        found = pairs.get((min(row, column), max(row, column)))
        return (getattr(found, measure), len(found.modules)) if found else (None, None)

    cells = [[cell(row, column) for column in places] for row in places]
    return SimilarityInfo(
        names=tuple(names),
        values=tuple(tuple(value for value, _ in row) for row in cells),
        shared=tuple(tuple(count for _, count in row) for row in cells),
    )


def draw_similarity(info: SimilarityInfo) -> go.Figure:
    """Draws the matrix with its numbers; the first adapter is at the top and at the left."""
    names = [plain(name) for name in info.names]
    places = list(range(len(names)))
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=places,
            z=info.values,
            zmin=-1,
            zmax=1,
            text=[["–" if value is None else f"{value:.2f}" for value in row] for row in info.values],
            texttemplate="%{text}",
            customdata=[
                [
                    f"{names[row]} and {names[column]}"
                    + ("" if shared is None else f"<br>{shared} modules that both update")
                    for column, shared in enumerate(line)
                ]
                for row, line in enumerate(info.shared)
            ],
            hovertemplate="%{customdata}<br>%{z:.4f}<extra></extra>",
            hoverongaps=False,
            colorscale=_SCALE,
            colorbar={"thickness": 10, "outlinewidth": 0},
            xgap=2,
            ygap=2,
        )
    )
    lay_out(figure, x="", y="", height=120 + 44 * len(names))
    figure.update_xaxes(tickvals=places, ticktext=names, showgrid=False, zeroline=False, side="bottom")
    figure.update_yaxes(tickvals=places, ticktext=names, showgrid=False, zeroline=False, autorange="reversed")
    return figure
