"""A lane's log: what was written is read back, whatever killed the writer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rankloom.cluster.lane import cause_of, event_log, read_event_logs
from rankloom_registry import Event, TrialEnded, TrialReported, TrialStarted

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def story(trial: str, attempt: int, minute: int) -> list[Event]:
    at = NOON + timedelta(minutes=minute)
    return [
        TrialStarted(
            trial_id=trial, search_id="s", number=0, params={"target_modules": "mlp\u2028"}, attempt=attempt, at=at
        ),
        TrialReported(trial_id=trial, step=1, metrics={"steps": 1, "eval_loss": 0.5}, at=at + timedelta(seconds=1)),
        TrialEnded(trial_id=trial, status="completed", attempt=attempt, at=at + timedelta(seconds=2)),
    ]


def write(folder: Path, lane: str, events: list[Event], *, torn: str = "") -> None:
    with event_log(folder, lane) as log:
        log.writelines(event.to_json() + "\n" for event in events)
        log.write(torn)


def test_events_come_back_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path, "lane-0", story("a", 1, 0))
    write(tmp_path, "lane-0", story("b", 1, 1))
    assert read_event_logs(tmp_path) == [*story("a", 1, 0), *story("b", 1, 1)]


def test_a_folder_without_logs_has_no_events(tmp_path: Path) -> None:
    assert read_event_logs(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 20, 90, -1])
def test_a_torn_line_is_left_out_and_spoils_nothing_after_it(tmp_path: Path, cut: int) -> None:
    torn = story("lost", 1, 1)[0].to_json()[:cut]
    write(tmp_path, "lane-0", story("a", 1, 0), torn=torn)
    assert read_event_logs(tmp_path) == story("a", 1, 0)
    write(tmp_path, "lane-0", story("b", 1, 2))
    assert read_event_logs(tmp_path) == [*story("a", 1, 0), *story("b", 1, 2)]


def test_a_character_cut_in_two_is_no_obstacle(tmp_path: Path) -> None:
    write(tmp_path, "lane-0", story("a", 1, 0))
    with (tmp_path / "events" / "lane-0.jsonl").open("ab") as log:
        log.write('{"kind": "é'.encode()[:-1])
    assert read_event_logs(tmp_path) == story("a", 1, 0)


def test_a_trial_that_moved_between_lanes_is_read_in_the_order_in_which_it_happened(tmp_path: Path) -> None:
    write(tmp_path, "lane-1", story("a", 1, 0)[:2])
    write(tmp_path, "lane-0", story("a", 2, 1))
    assert read_event_logs(tmp_path) == [*story("a", 1, 0)[:2], *story("a", 2, 1)]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("Training failed due to worker errors:\n  CUDA error: no memory\n"), "CUDA error: no memory"),
        (ValueError("x" * 1000), "x" * 300),
    ],
)
def test_the_cause_of_an_error_is_the_last_line_of_its_message(error: ValueError, cause: str) -> None:
    assert cause_of(error) == f"ValueError: {cause}"


def test_an_error_without_a_message_has_a_cause_too() -> None:
    assert cause_of(MemoryError()) == "MemoryError"
