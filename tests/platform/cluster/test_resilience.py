"""The driver is killed, or interrupted, and the search goes on: from outside, through the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from rankloom.cluster.lane import read_event_logs
from rankloom.control import status_now
from rankloom_registry import Event, Registry, TrialEnded, TrialRecord, TrialReported

pytestmark = pytest.mark.slow

MARK = "RANKLOOM_TEST_MARK"
NUM_SAMPLES = 4
STEPS = 60
WAIT_S = 300.0  # for what takes seconds on a machine with nothing else to do


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"no {what} within {timeout_s:.0f} s"
        time.sleep(0.05)


class Outside:
    """A search's folder, and `rankloom search` as a person starts it there; its processes carry a mark."""

    def __init__(self, folder: Path, model: Path, rows: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.config = folder / "search.yaml"
        self.run_folder = folder / "registry.runs" / "negation"
        settings = {
            "model_name_or_path": str(model),
            "dataset": str(rows),
            "space": "lora-small",
            "num_samples": NUM_SAMPLES,
            "name": "negation",
            "keep_top": 2,
            "slots_per_lane": 1,  # one after the other, so that some have ended when others have not
            "scheduler": None,
            "training": {"max_steps": STEPS, "eval_steps": 4, "max_length": 64},
        }
        self.config.write_text(yaml.safe_dump(settings))

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    @property
    def registry(self) -> Registry:
        return Registry.open(self.folder / "registry.duckdb")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {MARK: self.mark, "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-c",
            "from rankloom.cli import main; main()",
            "search",
            str(self.config),
            *arguments,
        ]
        with (self.folder / "output.txt").open("w") as output:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def resume(self) -> None:
        assert self.start("--resume").wait(WAIT_S) == 0, self.output

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def in_the_middle_of(self, number: int) -> bool:
        """Whether a trial has reported, and not for the last time."""
        steps = [e.step for e in self.logged() if isinstance(e, TrialReported) and e.trial_id.endswith(f"-{number}")]
        return bool(steps) and max(steps) < STEPS // 2

    def logged(self) -> list[Event]:
        return read_event_logs(self.run_folder)

    def trials(self) -> list[TrialRecord]:
        return self.registry.trials("negation")


@pytest.fixture
def outside(tmp_path: Path, tiny_model: Path, rows_file: Path) -> Iterator[Outside]:
    made = Outside(tmp_path, tiny_model, rows_file)
    yield made
    for process in made.processes():
        process.kill()


def assert_complete(outside: Outside, interrupted: int) -> None:
    """Check that every trial is there once, and that the interrupted one alone was begun twice."""
    trials = outside.trials()
    assert [(trial.number, trial.status, trial.steps) for trial in trials] == [
        (number, "completed", STEPS) for number in range(NUM_SAMPLES)
    ]
    for trial in trials:
        kinds = [event.kind for event in outside.registry.events(trial.trial_id)]
        assert kinds.count("trial_started") == trial.attempts == (2 if trial.number == interrupted else 1)
        assert kinds.count("trial_ended") == 1
        assert kinds.count("trial_reported") == STEPS // 4
    search = outside.registry.search("negation")
    assert (search.status, search.trials, search.finished_trials) == ("completed", NUM_SAMPLES, NUM_SAMPLES)
    kept = outside.registry.adapters("status = 'available'")
    assert len(kept) == 2
    for adapter in kept:
        outside.registry.verify(adapter)
    assert [path.name for path in outside.registry.artifacts.root.iterdir()] == ["sha256"]
    assert list((outside.run_folder / "adapters").iterdir()) == []


def test_a_killed_driver_is_resumed_without_training_anything_twice(outside: Outside) -> None:
    driver = outside.start()
    wait_for("report of trial 2", lambda: driver.poll() is not None or outside.in_the_middle_of(2))
    assert driver.poll() is None, outside.output
    driver.kill()
    driver.wait()
    wait_for("end of the driver's processes", lambda: not outside.processes(), 60)
    before = {trial.trial_id: trial for trial in outside.trials() if trial.status == "completed"}
    ended = {event.trial_id for event in outside.logged() if isinstance(event, TrialEnded)}
    assert {trial_id.rsplit("-", 1)[1] for trial_id in ended} == {"0", "1"}
    search = outside.registry.search("negation")
    assert (search.status, status_now(outside.registry, search)) == ("running", "interrupted")

    outside.resume()
    assert_complete(outside, interrupted=2)
    story = list(reversed(outside.registry.events(search.search_id)))
    assert [event.kind for event in story] == ["search_started", "search_ended", "search_resumed", "search_ended"]
    assert story[1].payload == {"search_id": search.search_id, "status": "interrupted", "message": "its process died"}
    spans = [span for span in outside.registry.trial_spans("negation") if span.number == 2]
    assert [(span.status, span.slot) for span in spans] == [("interrupted", 0), ("completed", 0)]
    assert spans[0].ended_at == story[1].at < story[2].at
    after = {trial.trial_id: trial for trial in outside.trials()}
    assert all(after[trial_id].ended_at == trial.ended_at for trial_id, trial in before.items())
    wait_for("end of the driver's processes", lambda: not outside.processes(), 60)


def test_ctrl_c_ends_promptly_says_how_to_go_on_and_the_search_goes_on(outside: Outside) -> None:
    driver = outside.start()
    wait_for("report of trial 1", lambda: driver.poll() is not None or outside.in_the_middle_of(1))
    assert driver.poll() is None, outside.output
    os.killpg(driver.pid, signal.SIGINT)  # to the whole group, as a terminal sends it
    asked = time.monotonic()
    assert driver.wait(WAIT_S) == 130, outside.output
    assert time.monotonic() - asked < 30
    assert "--resume" in outside.output and "Traceback" not in outside.output and "error" not in outside.output.lower()
    search = outside.registry.search("negation")
    assert (search.status, search.message) == ("interrupted", "interrupted by the user")
    assert [(trial.number, trial.status) for trial in outside.trials()] == [(0, "completed"), (1, "interrupted")]
    wait_for("end of the driver's processes", lambda: not outside.processes(), 60)

    outside.resume()
    assert_complete(outside, interrupted=1)
    wait_for("end of the driver's processes", lambda: not outside.processes(), 60)
