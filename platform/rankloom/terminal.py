"""The live table of a search: trials with step, loss, rung and best so far; plain lines where there is no terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rankloom.config import SearchConfig, TrainingConfig, rungs
from rankloom_registry import Event, SearchExtended, TrialEnded, TrialReported, TrialStarted

if TYPE_CHECKING:
    from rankloom.cluster.flight import LaneState, Progress

ROWS = 20
STYLES = {"completed": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "queued": "dim"}
LABELS = {"stopped": "stopped early"}


@dataclass(slots=True)
class _Row:
    number: int
    params: dict[str, Any]
    status: str = "running"
    step: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    message: str = ""


@dataclass(slots=True)
class Board:
    """What the table shows, as plain data; fed by events."""

    num_samples: int = 0
    max_steps: int = 0
    rungs: tuple[int, ...] = ()
    trials: dict[str, _Row] = field(default_factory=dict)
    lanes: tuple[LaneState, ...] = ()

    def update(self, events: Sequence[Event], lanes: Sequence[LaneState], progress: Sequence[Progress]) -> None:
        """Take in what happened."""
        self.lanes = tuple(lanes)
        for event in events:
            if isinstance(event, TrialStarted):
                self.trials[event.trial_id] = _Row(event.number, dict(event.params))
            elif isinstance(event, TrialReported) and event.trial_id in self.trials:
                row = self.trials[event.trial_id]
                row.step, row.eval_loss = event.step, event.metrics.get("eval_loss")
            elif isinstance(event, TrialEnded) and event.trial_id in self.trials:
                row = self.trials[event.trial_id]
                row.status, row.message = event.status, event.message
                row.step = int(event.metrics.get("steps") or row.step)
                row.eval_loss = event.metrics.get("eval_loss", row.eval_loss)
            elif isinstance(event, SearchExtended):
                self.num_samples = event.num_samples
        for at in progress:
            if at.trial_id in self.trials and self.trials[at.trial_id].status == "running":
                row = self.trials[at.trial_id]
                row.step, row.train_loss = max(row.step, at.step), at.train_loss

    @property
    def best(self) -> _Row | None:
        """The trial with the lowest eval_loss so far."""
        measured = [row for row in self.trials.values() if row.eval_loss is not None and row.status != "failed"]
        return min(measured, key=lambda row: row.eval_loss or 0.0, default=None)

    def rung(self, row: _Row) -> str:
        """Return how many early-stopping rungs a trial has passed, such as '1/2'."""
        passed = sum(row.step > rung or (row.step == rung and row.status != "stopped") for rung in self.rungs)
        return f"{passed}/{len(self.rungs)}" if self.rungs else "–"

    def headline(self) -> str:
        """Return the state of the search in one line."""
        counts = dict.fromkeys(("completed", "stopped", "failed", "running"), 0)
        for row in self.trials.values():
            counts[row.status] = counts.get(row.status, 0) + 1
        parts = [f"{count} {LABELS.get(status, status)}" for status, count in counts.items() if count]
        waiting = [lane.lane for lane in self.lanes if lane.state == "loading"]
        if waiting:
            parts.append(f"{', '.join(waiting)} loading the base")
        if all(lane.state == "starting" for lane in self.lanes):
            parts.append("starting Ray")
        if slots := sum(lane.slots for lane in self.lanes if lane.state == "ready"):
            parts.append(f"{slots} at a time")
        best = self.best
        if best is not None:
            parts.append(f"best {best.eval_loss:.4f} (trial {best.number})")
        return f"{len(self.trials)}/{self.num_samples} trials: " + ", ".join(parts)


def draw_board(board: Board) -> Group:
    """Draw the table; of a long search the last trials, and always the best one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", "state", "step", "rung", "train loss", "eval loss"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for name in ("r", "alpha", "learning rate", "targets", "dropout"):
        table.add_column(name, justify="left" if name == "targets" else "right", no_wrap=True)
    rows = sorted(board.trials.values(), key=lambda row: row.number)
    best = board.best
    shown = rows[-ROWS:]
    if best is not None and best not in shown:
        shown = [best, *shown[1:]]
    for row in shown:
        # Text throughout, so that a value that looks like markup is shown as it is.
        cells = [Text(cell) if isinstance(cell, str) else cell for cell in _cells(board, row)]
        table.add_row(*cells, style="bold" if row is best else "")
    hidden = len(rows) - len(shown)
    notes = [Text(f"… {hidden} earlier trials", style="dim")] if hidden else []
    return Group(table, *notes, Text(board.headline(), style="bold"))


def _cells(board: Board, row: _Row) -> list[Text | str]:
    params = row.params
    alpha = f"{params.get('lora_alpha', '')}" + (" rs" if params.get("use_rslora") else "")
    return [
        f"{row.number}" + (" prior" if row.number == 0 else ""),
        Text(LABELS.get(row.status, row.status), style=STYLES.get(row.status, "")),
        f"{row.step}/{board.max_steps}",
        board.rung(row),
        "" if row.train_loss is None else f"{row.train_loss:.4f}",
        "" if row.eval_loss is None else f"{row.eval_loss:.4f}",
        f"{params.get('r', '')}",
        alpha,
        f"{params['learning_rate']:.2e}" if "learning_rate" in params else "",
        str(params.get("target_modules", "")),
        f"{params.get('lora_dropout', 0):.2g}",
    ]


class TerminalWatcher:
    """Shows a search on a console: live where it is a terminal, else one line for each thing that happens."""

    def __init__(self, console: Console) -> None:
        """Show on `console`."""
        self._console = console
        self._board = Board()
        self._live: Live | None = None
        self._lock = threading.Lock()
        self._last = ""

    @contextmanager
    def showing(self) -> Iterator[TerminalWatcher]:
        """Keep the terminal in order: the live table ends with the block, also after an error."""
        try:
            yield self
        finally:
            if self._live is not None:
                self._live.update(draw_board(self._board), refresh=True)
                self._live.stop()

    @property
    def begun(self) -> bool:
        """Whether trials have begun: from then on the search can be resumed."""
        return self._board.num_samples > 0

    def say(self, message: str) -> None:
        """Print what is being prepared."""
        self._console.print(message, style="dim", markup=False, highlight=False)

    def begin(self, name: str, config: SearchConfig, training: TrainingConfig) -> None:
        """Open the live table."""
        max_steps, eval_steps = training.max_steps or 0, training.eval_steps or 0
        self._board.num_samples = config.num_samples
        self._board.max_steps = max_steps
        self._board.rungs = rungs(eval_steps, max_steps) if config.scheduler == "asha" else ()
        self._console.print(
            f"search {name}: {config.num_samples} trials of {max_steps} steps, evaluated every {eval_steps}",
            markup=False,
            highlight=False,
        )
        if self._console.is_terminal:
            self._live = Live(draw_board(self._board), console=self._console, auto_refresh=False, transient=False)
            self._live.start()

    def update(self, events: Sequence[Event], lanes: Sequence[LaneState], progress: Sequence[Progress]) -> None:
        """Draw the table again, or print what is new."""
        with self._lock:
            self._board.update(events, lanes, progress)
            if self._live is not None:
                self._live.update(draw_board(self._board), refresh=True)
                return
            for event in events:
                if isinstance(event, TrialEnded) and event.trial_id in self._board.trials:
                    self._line(self._board.trials[event.trial_id])
                elif isinstance(event, SearchExtended):
                    self.say(f"{event.num_samples} trials from now on, as {event.who} asked")
            state = "; ".join(", ".join(filter(None, (f"{lane.lane} {lane.state}", lane.message))) for lane in lanes)
            if state != self._last and state:
                self._last = state
                self.say(state)

    def _line(self, row: _Row) -> None:
        loss = "no loss" if row.eval_loss is None else f"eval_loss {row.eval_loss:.4f}"
        tail = f": {row.message}" if row.message else ""
        self._console.print(
            f"trial {row.number} {LABELS.get(row.status, row.status)} at step {row.step}/{self._board.max_steps}, "
            f"{loss}{tail}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
