"""Draws documents of `search_throughput.py` as bars: the median of each mode, and the span of its samples.

Usage: python benchmarks/throughput_figure.py docs/images/throughput.svg RUN.json [RUN.json ...]
The SVG needs no library to make and no font or script to show; it follows the reader's light or dark theme.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT = 760, 110, 150
BAR, GAP, HEAD, FOOT = 22, 10, 56, 18
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.unit { fill: #57606a }
.bar { fill: #8c959f }
.ours { fill: #0969da }
.span { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .unit { fill: #9198a1 }
  .bar { fill: #6e7681 }
  .ours { fill: #4493f8 }
  .span { stroke: #e6edf3 }
}
"""
OURS = ("lane-1", "packed", "rankloom")


@dataclass(frozen=True, slots=True)
class Bar:
    mode: str
    median: float
    low: float
    high: float
    ratio: float | None  # to the first mode, seed by seed


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str
    bars: tuple[Bar, ...]


def panel(document: dict[str, Any]) -> Panel:
    """Return what is drawn of one document."""
    ratios = {name.partition("/")[0]: ratio["median"] for name, ratio in document["ratios"].items()}
    return Panel(
        title=document["title"],
        unit=f"{document['unit']}, {document['machine']['gpu'] or document['machine']['processor']}",
        bars=tuple(
            Bar(mode, document["medians"][mode], min(values), max(values), ratios.get(mode))
            for mode, values in document["values"].items()
        ),
    )


def draw(panels: Sequence[Panel]) -> str:
    """Return the panels as one SVG, one below the other, each with its own scale from zero."""
    parts, top = [], 0
    for shown in panels:
        parts += _drawn(shown, top)
        top += _height(shown)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" role="img">\n'
        f"<title>{escape('; '.join(shown.title for shown in panels))}</title>\n"
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _height(shown: Panel) -> int:
    return HEAD + len(shown.bars) * (BAR + GAP) + FOOT


def _drawn(shown: Panel, top: int) -> list[str]:
    scale = (WIDTH - LEFT - RIGHT) / max(bar.high for bar in shown.bars)
    parts = [
        f'<text class="title" x="0" y="{top + 18}">{escape(shown.title)}</text>',
        f'<text class="unit" x="0" y="{top + 38}">{escape(shown.unit)}</text>',
    ]
    for index, bar in enumerate(shown.bars):
        y = top + HEAD + index * (BAR + GAP)
        middle = y + BAR / 2
        style = "ours" if bar.mode in OURS else "bar"
        ratio = f"{bar.median:.4g}" + (f" ({bar.ratio:.2f}×)" if bar.ratio is not None else "")
        parts += [
            f'<text x="{LEFT - 10}" y="{middle + 4.5:.1f}" text-anchor="end">{escape(bar.mode)}</text>',
            f'<rect class="{style}" x="{LEFT}" y="{y}" width="{bar.median * scale:.1f}" height="{BAR}" rx="2"/>',
            f'<line class="span" x1="{LEFT + bar.low * scale:.1f}" x2="{LEFT + bar.high * scale:.1f}" '
            f'y1="{middle}" y2="{middle}"/>',
            f'<text x="{LEFT + bar.high * scale + 8:.1f}" y="{middle + 4.5:.1f}">{ratio}</text>',
        ]
    return parts


def main(output: str, *runs: str) -> None:
    panels = [panel(json.loads(Path(run).read_text(encoding="utf-8"))) for run in runs]
    Path(output).write_text(draw(panels), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python benchmarks/throughput_figure.py OUT.svg RUN.json [RUN.json ...]")
    main(*sys.argv[1:])
