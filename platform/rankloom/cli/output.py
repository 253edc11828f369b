"""What the commands share: options, tables for people, one JSON document for programs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from rankloom_registry import Registry
from rankloom_registry.signing import Verifier

RegistryOption = Annotated[
    Path,
    typer.Option("--registry", envvar="RANKLOOM_REGISTRY", help="The registry file.", show_default=True),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
DEFAULT_REGISTRY = Path("registry.duckdb")
WIDE, NARROW = 200, 28  # characters: a line of a file or pipe; a cell that is never folded


def output() -> Console:
    """Return the console of results: stdout, wide where it is not a terminal, so that no value is folded."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE)


def errors() -> Console:
    """Return the console of everything else: stderr."""
    return Console(stderr=True)


def open_registry(path: Path, verifier: Verifier | None = None) -> Registry:
    """Open an existing registry, whose adapters must be signed as the verifier asks.

    Raises:
        RegistryNotFoundError: There is none.
    """
    return Registry.open(path.expanduser(), verifier=verifier)


def show_json(value: Any) -> None:
    """Print one JSON document on stdout, all of it or nothing."""
    # JSON knows no NaN and no infinity: what has no value there is null.
    plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda name: None)
    sys.stdout.write(json.dumps(plain, indent=2) + "\n")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | tuple):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a table on stdout; values are shown as text, never as markup."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    cells = [[cell(value) for value in row] for row in rows]
    for index, (name, right) in enumerate(zip(columns, numeric, strict=True)):
        short = all(len(row[index]) <= NARROW for row in cells)
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=short)
    for row in cells:
        table.add_row(*map(Text, row))
    output().print(table)


def show_pairs(pairs: Sequence[tuple[str, Any]], *, title: str | None = None) -> None:
    """Print names and values on stdout, one a line."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, Text(cell(value)))
    output().print(table)


def cell(value: Any) -> str:
    """Return a value as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-2 and value else f"{value:.4f}"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=_plain, ensure_ascii=False)
    return str(value)


def progress_bars() -> AbstractContextManager[Callable[[str, int, int], None]]:
    """Yield a function of (stage, done, total) that draws one bar a stage on stderr."""
    return _bars(MofNCompleteColumn())


def byte_bars() -> AbstractContextManager[Callable[[str, int, int], None]]:
    """Yield what `progress_bars` does, of bytes, with their speed."""
    return _bars(DownloadColumn(), TransferSpeedColumn())


def promotion_bars() -> AbstractContextManager[Callable[[str, int, int], None]]:
    """Yield what `progress_bars` does, where some stages count bytes and others rows."""
    return _bars(_Amounts())


class _Amounts(ProgressColumn):
    """Bytes with their speed, or a number of rows or tensors, as the stage counts them."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes, self._speed, self._rows = DownloadColumn(), TransferSpeedColumn(), MofNCompleteColumn()

    def render(self, task: Task) -> Text:
        if task.description.startswith(("measure", "replay")):
            return self._rows.render(task)
        return Text(" ").join([self._bytes.render(task), self._speed.render(task)])


@contextlib.contextmanager
def _bars(*figures: ProgressColumn) -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), *figures, TimeRemainingColumn())
    console = errors()
    # Where nobody watches, rich would still end with an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance
