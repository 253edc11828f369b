from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rankloom_registry import AdapterDiscarded, BaseFingerprint, BaseSeen, Event, EventError, Registry, TrialReported
from rankloom_registry.store.journal import Journal, read_log


def reported(step: int, trial: str = "trial-0") -> TrialReported:
    return TrialReported(trial_id=trial, step=step, metrics={"eval_loss": float(step)})


def steps(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, TrialReported)]


def test_every_recorded_event_is_a_line_of_the_journal_once(registry: Registry, base: BaseFingerprint) -> None:
    first, second = BaseSeen(base=base), BaseSeen(base=base, event_id="again")
    registry.record(first, first)
    registry.record(first, second)
    registry.record(second)
    journal = registry.path.with_name("registry.events.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert lines[0] == {"settings": {"artifacts": "registry.artifacts"}}
    assert [line["event_id"] for line in lines[1:]] == [first.event_id, "again"]
    assert read_log(journal).events == [first, second]


def test_what_is_refused_is_not_in_the_journal(searched: Registry) -> None:
    searched.record(reported(1))
    with pytest.raises(EventError, match="'ghost'"):
        searched.record(reported(2), reported(3, trial="ghost"))
    assert steps(read_log(Journal(searched.path).path).events) == [1]


def test_a_registry_that_had_no_journal_writes_down_all_that_it_holds(searched: Registry) -> None:
    journal = Journal(searched.path)
    assert not journal.path.exists()
    before = searched.events()
    searched.record(AdapterDiscarded(adapter_id="0bcd-adapter", reason="space"))
    log = read_log(journal.path)
    assert [event.event_id for event in log.events] == [
        *(event.event_id for event in reversed(before)),
        "adapter_discarded:0bcd-adapter",
    ]
    assert [event.at for event in log.events[:-1]] == [event.at for event in reversed(before)]
    assert log.torn == 0 and log.settings == {"artifacts": "registry.artifacts"}
    events = {event.event_id: event for event in log.events}
    added = events["adapter_added:1bcd-adapter"]
    assert (added.params["r"], added.metrics) == (16, {"eval_loss": 1.5})  # type: ignore[attr-defined]


def test_a_torn_line_is_ended_and_left_out(searched: Registry) -> None:
    searched.record(reported(1))
    journal = Journal(searched.path)
    with journal.path.open("a") as file:
        file.write('{"kind":"trial_repor')
    searched.record(reported(2))
    log = read_log(journal.path)
    assert steps(log.events) == [1, 2] and log.torn == 1


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
def test_the_journal_is_read_backwards(searched: Registry, block: int) -> None:
    for step in range(3):
        searched.record(reported(step))
    journal = Journal(searched.path)
    forwards = read_log(journal.path).events
    with journal.path.open("a") as file:
        file.write('{"kind":"trial_repor')
    assert list(journal.backwards(block)) == forwards[::-1]
    assert list(Journal(searched.path.with_name("none.duckdb")).backwards()) == []


def test_a_disk_that_is_full_for_the_journal_is_a_message_and_nothing_is_recorded(
    searched: Registry, child_environment: dict[str, str]
) -> None:
    searched.record(reported(1))
    script = """
import resource, sys
from rankloom_registry import Registry, RegistryWriteError, TrialReported
registry = Registry.open(sys.argv[1])
most = registry.path.stat().st_size + 2000
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
try:
    registry.record(TrialReported(trial_id="trial-0", step=2, metrics={"eval_loss": 1.0}, why="x" * most))
except RegistryWriteError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(searched.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"cannot write {Journal(searched.path).path}" in done.stdout
    assert [metrics.step for metrics in searched.step_metrics("trial-0")] == [1]
    searched.record(reported(3))
    assert steps(read_log(Journal(searched.path).path).events)[-1] == 3


def test_the_journal_of_a_registry_that_is_gone_is_set_aside(searched: Registry, base: BaseFingerprint) -> None:
    searched.record(reported(1))
    searched.path.unlink()
    with pytest.warns(UserWarning, match=r"registry\.events\.jsonl\.before-.*registry rebuild"):
        fresh = Registry.open(searched.path, create=True)
    fresh.record(BaseSeen(base=base))
    (aside,) = searched.path.parent.glob("registry.events.jsonl.before-*")
    assert steps(read_log(aside).events) == [1]
    assert [event.kind for event in read_log(Journal(fresh.path).path).events] == ["base_seen"]
    aside.replace(Journal(fresh.path).path)
    assert Registry.rebuild(fresh.path).left_out == ()
    assert [metrics.step for metrics in fresh.step_metrics("trial-0")] == [1]


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path / "none.jsonl").events == []
