"""How much better one model is than another on each row of an evaluation, from its best row to its worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from rankloom_dashboard import formats
from rankloom_dashboard.charts.style import ROLE_COLORS, lay_out
from rankloom_dashboard.evaluations.tables import Advantage, Change

MOST_BARS = 400
_COLORS: dict[Change, str] = {
    "better": ROLE_COLORS["running"],
    "same": ROLE_COLORS["stopped"],
    "worse": ROLE_COLORS["failed"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantagesInfo:
    """Bars of the chart.

    Attributes:
        bars: Rows from the one that is won most to the one that is lost most; a sample of them if there are many.
        rows: How many rows have a number.
        left_out: How many have none, as one of the models gave none.
        unit: Of the values.
    """

    bars: tuple[Advantage, ...]
    rows: int
    left_out: int
    unit: str

    @property
    def alt(self) -> str:
        """What is drawn, for those who do not see it."""
        if not self.bars:
            return "No row has a number"
        best, worst = self.bars[0].by, self.bars[-1].by
        bars = formats.counted(len(self.bars), "bar", "bars")
        return f"{bars}, a row each, from the best to the worst: {best:+.4f} to {worst:+.4f} {self.unit}"

    @property
    def caption(self) -> str:
        """Which rows are drawn."""
        sample = f"{len(self.bars)} of {self.rows:,} rows, at equal distances"
        drawn = "One bar a row" if len(self.bars) == self.rows else sample
        if not self.left_out:
            return f"{drawn}."
        rows = formats.counted(self.left_out, "row", "rows")
        return f"{drawn}; {rows} without a number {'is' if self.left_out == 1 else 'are'} left out."


def advantages_info(advantages: Sequence[Advantage], *, unit: str) -> AdvantagesInfo:
    """Chooses the bars: all rows with a number, or as many at equal distances as the eye can tell apart."""
    finite = bars = [one for one in advantages if math.isfinite(one.by)]
    if len(finite) > MOST_BARS:
        last = len(finite) - 1
        bars = [finite[round(place * last / (MOST_BARS - 1))] for place in range(MOST_BARS)]
    return AdvantagesInfo(bars=tuple(bars), rows=len(finite), left_out=len(advantages) - len(finite), unit=unit)


def draw_advantages(info: AdvantagesInfo) -> go.Figure:
    """Draws one bar a row."""
    figure = go.Figure()
    for change, color in _COLORS.items():
        mine = [(place, one) for place, one in enumerate(info.bars) if one.change == change]
        if mine:
            figure.add_bar(
                x=[place for place, _ in mine],
                y=[one.by for _, one in mine],
                name=change,
                marker={"color": color, "line": {"width": 0}},
                customdata=[one.row for _, one in mine],
                hovertemplate="row %{customdata}: %{y:+.4f}<extra></extra>",
            )
    lay_out(figure, x="rows, best first", y=f"better by, {info.unit}", height=240)
    figure.update_layout(bargap=0.1 if len(info.bars) < 100 else 0)
    figure.update_xaxes(showticklabels=False)
    return figure
