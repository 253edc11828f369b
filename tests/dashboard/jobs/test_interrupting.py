"""Ctrl-C in the terminal of the dashboard reaches its workers once, so that they can clean up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Cleans up while its dashboard ends, and a little longer.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from rankloom_dashboard.jobs import worker

def sleep(order, tell):
    dashboard = os.getppid()
    Path(order["file"]).touch()
    try:
        time.sleep(60)
    finally:
        while os.getppid() == dashboard:
            time.sleep(0.01)
        time.sleep(0.5)
        Path(order["file"] + ".cleaned").touch()

worker.WORK["sleep"] = sleep
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(worker.main())
"""
DASHBOARD = (
    "import sys, time; from rankloom_dashboard.jobs import job; job.WORKER = 'slow_worker'; "
    "one = job.Job('1', 'sleep', {'file': sys.argv[1]}, ''); time.sleep(60)"
)


def test_a_worker_can_clean_up_when_the_terminal_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    file = tmp_path / "began"
    terminal = [sys.executable, "-c", DASHBOARD, str(file)]
    with subprocess.Popen(terminal, process_group=0, stderr=subprocess.DEVNULL) as dashboard:
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(dashboard.pid, signal.SIGINT)
    while not file.with_name("began.cleaned").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
