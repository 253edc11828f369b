"""What a search shows while it runs: the board as data, the table as text, plain lines where there is no terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rankloom.cluster.flight import LaneState, Progress
from rankloom.config import parse_config
from rankloom.terminal import ROWS, Board, TerminalWatcher, draw_board
from rankloom_registry import Event, SearchExtended, TrialEnded, TrialReported, TrialStarted

PARAMS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "use_rslora": True,
    "learning_rate": 3e-4,
    "target_modules": "all-linear",
    "lora_dropout": 0.05,
}
READY = LaneState(lane="lane-0", state="ready")


def started(number: int, **params: Any) -> TrialStarted:
    return TrialStarted(trial_id=f"t-{number}", search_id="s", number=number, params=PARAMS | params)


def reported(number: int, step: int, loss: float) -> TrialReported:
    return TrialReported(trial_id=f"t-{number}", step=step, metrics={"steps": step, "eval_loss": loss})


def ended(number: int, status: str, message: str = "", **metrics: float) -> TrialEnded:
    return TrialEnded(trial_id=f"t-{number}", status=status, metrics=metrics, message=message)


def board(*events: Event, num_samples: int = 4) -> Board:
    made = Board(num_samples=num_samples, max_steps=9, rungs=(1, 3))
    made.update(events, [READY], [])
    return made


def text(board: Board, width: int = 160) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(draw_board(board))
    return capture.get().splitlines()


def test_a_trial_is_one_row_from_start_to_end() -> None:
    shown = board(started(0), reported(0, 3, 1.5))
    shown.update([], [READY], [Progress(trial_id="t-0", number=0, step=5, train_loss=1.25)])
    assert text(shown)[1].split() == [
        "0",
        "prior",
        "running",
        "5/9",
        "2/2",
        "1.2500",
        "1.5000",
        "8",
        "16",
        "rs",
        "3.00e-04",
        "all-linear",
        "0.05",
    ]
    shown.update([reported(0, 9, 1.0), ended(0, "completed", eval_loss=1.0, steps=9)], [READY], [])
    shown.update([], [READY], [Progress(trial_id="t-0", number=0, step=2, train_loss=9.0)])  # late, and wrong
    assert text(shown)[1].split()[:6] == ["0", "prior", "completed", "9/9", "2/2", "1.2500"]
    assert len(text(shown)) == 3


def test_a_trial_that_begins_again_begins_anew() -> None:
    shown = board(started(0), reported(0, 3, 1.5), started(0))
    assert shown.trials["t-0"].step == 0 and shown.trials["t-0"].eval_loss is None


def test_events_of_unknown_trials_are_ignored() -> None:
    shown = board(reported(7, 1, 1.0), ended(7, "completed"))
    shown.update([], [READY], [Progress(trial_id="t-7", number=7, step=1, train_loss=1.0)])
    assert shown.trials == {}


@pytest.mark.parametrize(
    ("step", "status", "passed"),
    [(0, None, "0/2"), (1, None, "1/2"), (1, "stopped", "0/2"), (3, "stopped", "1/2"), (9, "completed", "2/2")],
)
def test_rungs_that_a_trial_passed(step: int, status: str | None, passed: str) -> None:
    shown = board(started(0), reported(0, step, 1.0))
    if status:
        shown.update([ended(0, status, steps=step)], [READY], [])
    assert shown.rung(shown.trials["t-0"]) == passed
    shown.rungs = ()
    assert shown.rung(shown.trials["t-0"]) == "–"


def test_the_headline_counts_and_names_the_best() -> None:
    shown = board(started(0), started(1), started(2), started(3), num_samples=5)
    shown.update(
        [
            ended(0, "completed", eval_loss=1.5, steps=9),
            ended(1, "stopped", eval_loss=1.25, steps=3),
            ended(2, "failed", "out of memory", eval_loss=0.1),
        ],
        [READY],
        [],
    )
    assert shown.headline() == "4/5 trials: 1 completed, 1 stopped early, 1 failed, 1 running, best 1.2500 (trial 1)"


@pytest.mark.parametrize(
    ("lanes", "says"),
    [
        ([], "0/4 trials: starting Ray"),
        ([LaneState(lane="lane-0")], "0/4 trials: starting Ray"),
        ([LaneState(lane="lane-0", state="loading"), READY], "0/4 trials: lane-0 loading the base"),
    ],
)
def test_the_headline_says_what_is_waited_for(lanes: list[LaneState], says: str) -> None:
    shown = board()
    shown.update([], lanes, [])
    assert shown.headline() == says


def test_markup_in_values_is_text() -> None:
    shown = board(started(1, target_modules="[red]q_proj[/red]", r="[bold]8", lora_alpha="[/]"))
    assert "[red]q_proj[/red]" in text(shown)[1] and "[bold]8" in text(shown)[1] and "[/]" in text(shown)[1]


def test_a_long_search_shows_its_last_trials_and_its_best() -> None:
    count = ROWS + 10
    events: list[Event] = [started(number) for number in range(count)]
    events += [ended(number, "completed", eval_loss=1.0 if number == 2 else 2.0, steps=9) for number in range(count)]
    lines = text(board(*events, num_samples=count))
    numbers = [line.split()[0] for line in lines[1 : ROWS + 1]]
    assert numbers == ["2", *(str(number) for number in range(count - ROWS + 1, count))]
    assert lines[ROWS + 1] == "… 10 earlier trials"
    assert "best 1.0000 (trial 2)" in lines[ROWS + 2]


def watched(*, terminal: bool) -> tuple[TerminalWatcher, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, width=160, force_terminal=terminal, color_system=None)
    return TerminalWatcher(console), file


def begin(watcher: TerminalWatcher, name: str = "one") -> None:
    config = parse_config(
        {
            "model_name_or_path": "base",
            "dataset": "rows",
            "num_samples": 2,
            "training": {"max_steps": 9, "eval_steps": 1},
        }
    )
    watcher.begin(name, config, config.training)


def test_without_a_terminal_each_thing_is_one_line() -> None:
    watcher, file = watched(terminal=False)
    with watcher.showing():
        watcher.say("base: [x]")
        begin(watcher, "[bold]")
        watcher.update([started(0)], [LaneState(lane="lane-0", state="loading")], [])
        watcher.update([reported(0, 1, 1.5)], [READY], [])
        watcher.update([], [READY], [])
        watcher.update([ended(0, "stopped", eval_loss=1.5, steps=1)], [READY], [])
        watcher.update([started(1), ended(1, "failed", "no [memory]")], [READY], [])
    assert file.getvalue().splitlines() == [
        "base: [x]",
        "search [bold]: 2 trials of 9 steps, evaluated every 1",
        "lane-0 loading",
        "lane-0 ready",
        "trial 0 stopped early at step 1/9, eval_loss 1.5000",
        "trial 1 failed at step 0/9, no loss: no [memory]",
    ]


def test_trials_that_somebody_adds_are_counted_and_told() -> None:
    more = SearchExtended(search_id="s", num_samples=9, who="ann")
    assert board(started(0), more).headline().startswith("1/9 trials: ")
    watcher, output = watched(terminal=False)
    begin(watcher)
    watcher.update([more], [], [])
    assert output.getvalue().splitlines()[-1] == "9 trials from now on, as ann asked"


def test_on_a_terminal_the_table_ends_with_the_last_state_even_after_an_error() -> None:
    watcher, file = watched(terminal=True)
    with pytest.raises(RuntimeError), watcher.showing():
        begin(watcher)
        watcher.update([started(0)], [READY], [])
        watcher.update([ended(0, "completed", eval_loss=1.5, steps=9)], [READY], [])
        raise RuntimeError("the disk is full")
    *_, last, cursor = file.getvalue().rstrip().splitlines()
    assert "1/2 trials: 1 completed, best 1.5000 (trial 0)" in last
    assert cursor == "\x1b[?25h"  # shown again
