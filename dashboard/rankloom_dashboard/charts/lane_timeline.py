"""Which trial held which slot of which lane, and when."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import plotly.graph_objects as go

from rankloom_dashboard import formats
from rankloom_dashboard.charts.style import ROLE_COLORS, ROLE_NAMES, ROLE_PATTERNS, Role, lay_out, plain, role_of
from rankloom_registry import TrialSpan

_ROW, _LEAST, _MOST = 26, 160, 900  # pixels
_DIGIT = 0.01  # of the chart's width
_PATTERN = {"fgcolor": "rgba(255, 255, 255, 0.55)", "size": 7, "solidity": 0.2}  # so faint that numbers can be read
_ORDER: tuple[Role, ...] = ("completed", "stopped", "failed", "interrupted", "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One attempt of a trial.

    Attributes:
        row: Index of the slot that it held, among the rows of the chart.
        number: Number of the trial.
        attempt: Which attempt of it, from 1.
        started: When it began.
        ended: When it ended, or now.
        role: Its state.
    """

    row: int
    number: int
    attempt: int
    started: datetime
    ended: datetime
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneTimelineInfo:
    """The slots by name, lane by lane; the attempts; and whether slots are only guessed, as none was recorded."""

    rows: tuple[str, ...]
    bars: tuple[Bar, ...]
    guessed: bool


def lane_timeline_info(spans: Sequence[TrialSpan], until: datetime) -> LaneTimelineInfo:
    """Gives each attempt the row of its slot.

    Where no slot was recorded, attempts of one lane that overlap are put into rows of their own, the first that is
    free: how many at once is true, which slot is not.

    Args:
        spans: The attempts of a search's trials.
        until: The end of those that have not ended.
    """
    free: defaultdict[str, list[datetime]] = defaultdict(list)  # when each guessed row of a lane is free again
    placed: list[tuple[tuple[str, int, bool], TrialSpan, datetime]] = []
    for span in sorted(spans, key=lambda span: (span.started_at, span.number)):
        ended = max(span.started_at, span.ended_at or until)
        if span.slot is not None:
            placed.append(((span.lane, span.slot, False), span, ended))
            continue
        ends = free[span.lane]
        row = next((row for row, end in enumerate(ends) if end <= span.started_at), len(ends))
        ends[row:] = [ended, *ends[row + 1 :]]
        placed.append(((span.lane, row, True), span, ended))
    keys = sorted({key for key, _, _ in placed}, key=lambda key: (_natural(key[0]), key[2], key[1]))
    index = {key: row for row, key in enumerate(keys)}
    bars = tuple(
        Bar(
            row=index[key],
            number=span.number,
            attempt=span.attempt,
            started=span.started_at,
            ended=ended,
            role=role_of(span.status, is_best=False, is_prior=False),
        )
        for key, span, ended in placed
    )
    several = {lane for lane, row, _ in keys if row > 0}
    return LaneTimelineInfo(
        rows=tuple(_row_name(lane, row, guessed, alone=lane not in several) for lane, row, guessed in keys),
        bars=bars,
        guessed=any(guessed for lane, _, guessed in keys if lane in several),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts lane-2 before lane-10."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _row_name(lane: str, row: int, guessed: bool, *, alone: bool) -> str:
    name = formats.shorten(lane or "no lane", 16)
    if alone:
        return name
    return f"{name} · row {row + 1}" if guessed else f"{name} · slot {row}"


def draw_lane_timeline(info: LaneTimelineInfo) -> go.Figure:
    """Draws a bar an attempt, in the row of its slot, with the trial's number on it and the colour of its state.

    Args:
        info: Bars, at least one.
    """
    figure = go.Figure()
    whole = max(bar.ended for bar in info.bars) - min(bar.started for bar in info.bars)
    narrow = whole.total_seconds() * _DIGIT
    for role in _ORDER:
        mine = [bar for bar in info.bars if bar.role == role]
        if not mine:
            continue
        figure.add_trace(
            go.Bar(
                orientation="h",
                y=[bar.row for bar in mine],
                base=[_local(bar.started) for bar in mine],
                x=[_seconds(bar) * 1000 for bar in mine],
                width=0.8,
                marker={
                    "color": ROLE_COLORS[role],
                    "line": {"width": 1, "color": "rgba(128, 128, 128, 0.6)"},
                    "pattern": {"shape": ROLE_PATTERNS[role], "fillmode": "overlay", **_PATTERN},
                },
                name=ROLE_NAMES[role],
                text=[str(bar.number) if _seconds(bar) >= narrow * len(str(bar.number)) else "" for bar in mine],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": "#111827", "size": 11},
                constraintext="none",
                customdata=[_hover(bar, info.rows[bar.row]) for bar in mine],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    height = min(_MOST, max(_LEAST, 110 + _ROW * len(info.rows)))
    lay_out(figure, x="", y="", height=height)
    figure.update_layout(barmode="overlay", showlegend=True)
    figure.update_xaxes(type="date", tickangle=0, nticks=6)
    figure.update_yaxes(
        tickvals=list(range(len(info.rows))),
        ticktext=[plain(row) for row in info.rows],
        range=[len(info.rows) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    return figure


def _seconds(bar: Bar) -> float:
    return (bar.ended - bar.started).total_seconds()


def _hover(bar: Bar, row: str) -> str:
    again = f", attempt {bar.attempt}" if bar.attempt > 1 else ""
    return (
        f"trial {bar.number}{again} · {ROLE_NAMES[bar.role]}<br>{plain(row)} · {formats.duration(_seconds(bar))}<br>"
        f"{formats.when(bar.started)[11:19]} to {formats.when(bar.ended)[11:19]}"
    )


def _local(moment: datetime) -> str:
    # Plotly shows a moment as it is written, whatever its zone.
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")
