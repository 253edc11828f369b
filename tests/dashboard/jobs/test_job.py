"""Programs that work for the dashboard, each of them a real one, and odd ones among them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rankloom_dashboard.jobs import job as jobs
from rankloom_dashboard.jobs.job import Job, Jobs

# A worker with kinds of work of its own.
WORKER = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from rankloom.errors import DataError
from rankloom_dashboard.jobs import worker

def echo(order, tell):
    print("what a library prints")
    for done in range(3):
        tell({"progress": ["work", done + 1, 3]})
    tell({"told": {"text": order["text"]}})
    return {"text": order["text"], "path": sys.path}

def fail(order, tell):
    raise DataError("no rows in ü: give others")

def crash(order, tell):
    for number in range(100):
        print("line", number, file=sys.stderr)
    raise RuntimeError("x" * 5_000)

def die(order, tell):
    os.write(tell._out.fileno(), b'{"result": {"half')
    os.kill(os.getpid(), signal.SIGKILL)

def odd(order, tell):
    os.write(tell._out.fileno(), b'\\xff\\xfe\\n[1]\\n"text"\\n{"progress": [1]}\\nnull\\n{"told": 1}\\n')
    os.write(2, b'\\xff\\xfe' + b'z' * 1_000_000)
    return {"fine": True}

def sleep(order, tell):
    Path(order["file"]).write_text(str(os.getpid()))
    tell({"progress": ["sleep", 0, 1]})
    try:
        time.sleep(60)
    finally:
        Path(order["file"] + ".ended").touch()

def deaf(order, tell):
    Path(order["file"]).write_text(str(os.getpid()))
    tell({"progress": ["sleep", 0, 1]})
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass

def leave(order, tell):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], stdin=subprocess.DEVNULL)
    return {"left": True}

def repeat(order, tell):
    return {"heard": [tell.hear(20) for _ in range(order["count"])] + [tell.hear(0.01)]}

kinds = (echo, fail, crash, die, odd, sleep, deaf, leave, repeat)
worker.WORK.update({kind.__name__: kind for kind in kinds})
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker.MOST_SECONDS_TO_STOP = 1.0
    sys.exit(worker.main())
"""


@pytest.fixture(autouse=True)
def odd_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.setattr(jobs, "WORKER", "odd_worker")


def start(kind: str, **order: object) -> Job:
    return Job(f"{kind}-1", kind, order, "ada@example.org")


def until(what: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # One that nobody waits for is over, too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("text", ["", "ü \u2028 \x00 \ud800", "line\nfeed", "m" * 1_000_000])
def test_a_job_tells_how_it_goes_and_what_it_made(text: str) -> None:
    job = start("echo", text=text)
    assert job.wait(60) == "done"
    assert job.result is not None and job.result["text"] == text
    assert job.told == [{"text": text}] and job.progress == ("work", 3, 3) and job.error == ""


def test_a_worker_imports_nothing_from_where_the_dashboard_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "json.py").write_text("raise SystemExit('not this one')")
    job = start("echo", text="")
    assert job.wait(60) == "done"
    assert job.result is not None and str(tmp_path / "here") not in job.result["path"]


def test_an_error_that_was_planned_for_is_its_message() -> None:
    job = start("fail")
    assert job.wait(60) == "failed"
    assert job.error == "no rows in ü: give others"


def test_one_that_was_not_is_the_last_words() -> None:
    job = start("crash")
    assert job.wait(60) == "failed"
    assert "exit code 1" in job.error and "RuntimeError: xxx" in job.error and "line 3\n" not in job.error
    assert len(job.error) < 60_000


def test_a_worker_that_is_killed_in_the_middle_of_a_word() -> None:
    job = start("die")
    assert job.wait(60) == "failed"
    assert "exit code -9" in job.error


def test_a_kind_that_nobody_knows_fails() -> None:
    job = start("unknown")
    assert job.wait(60) == "failed" and "KeyError: 'unknown'" in job.error


def test_a_worker_that_cannot_even_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "WORKER", "no_such_module")
    job = start("echo", text="m" * 1_000_000)  # more than a pipe holds
    assert job.wait(60) == "failed" and "no_such_module" in job.error
    job.say({"more": 1})
    job.cancel()
    assert job.state == "failed"


def test_what_makes_no_sense_is_not_heard() -> None:
    job = start("odd")
    assert job.wait(60) == "done"
    assert (job.result, job.progress, job.told) == ({"fine": True}, None, [])


def test_cancelling_stops_the_work_as_ctrl_c_would(tmp_path: Path) -> None:
    job = start("sleep", file=str(tmp_path / "pid"))
    until(lambda: job.progress)
    pid = int((tmp_path / "pid").read_text())
    assert job.state == "running"
    job.cancel()
    job.cancel()
    assert job.wait(30) == "cancelled"
    assert (tmp_path / "pid.ended").exists() and gone(pid)


def test_work_that_does_not_hear_of_it_is_ended_all_the_same(tmp_path: Path) -> None:
    job = start("deaf", file=str(tmp_path / "pid"))
    until(lambda: job.progress)
    job.cancel()
    assert job.wait(30) == "cancelled"
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_job_that_is_done_cannot_be_cancelled() -> None:
    job = start("echo", text="")
    job.wait(60)
    job.cancel()
    assert job.state == "done"


def test_a_program_that_the_work_leaves_behind_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_LAST_WORDS_S", 0.2)
    job = start("leave")
    assert job.wait(15) == "done"


def test_a_worker_ends_with_its_dashboard(tmp_path: Path) -> None:
    """Killed outright, so that it can tell nobody."""
    program = (
        "import sys, time; from rankloom_dashboard.jobs import job; job.WORKER = 'odd_worker'; "
        "one = job.Job('1', 'sleep', {'file': sys.argv[1]}, ''); time.sleep(60)"
    )
    dashboard = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "pid")])
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 60)
    pid = int((tmp_path / "pid").read_text())
    assert not gone(pid)
    dashboard.send_signal(signal.SIGKILL)
    dashboard.wait()
    until(lambda: gone(pid))
    assert (tmp_path / "pid.ended").exists()


def test_a_worker_hears_what_is_said_later() -> None:
    job = start("repeat", count=2)
    job.say({"text": "ü" * 300_000})
    job.say({"n": 2})
    assert job.wait(60) == "done"
    assert job.result == {"heard": [{"text": "ü" * 300_000}, {"n": 2}, None]}


def test_the_board_keeps_what_runs_and_the_last_that_are_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jobs, "_ENDED_KEPT", 1)
    board = Jobs()
    running = board.start("sleep", {"file": str(tmp_path / "pid")}, "ada@example.org")
    ended = []
    for number in range(3):
        ended.append(board.start("echo", {"text": str(number)}, ""))
        ended[-1].wait(60)
    last = board.start("fail", {}, "")
    last.wait(60)
    assert len({job.job_id for job in (*ended, last, running)}) == 5
    assert board.find(running.job_id) is running and running.who == "ada@example.org"
    assert board.find(ended[0].job_id) is None
    assert board.all() == [last, ended[2], running] and board.all("echo") == [ended[2]]
    running.cancel()
    running.wait(30)
