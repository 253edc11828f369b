"""A program that works for the dashboard, and what it has said so far."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

import streamlit as st

State = Literal["running", "done", "failed", "cancelled"]
WORKER = "rankloom_dashboard.jobs.worker"
_LAST_LINES = 20
_ENDED_KEPT = 50


class Job:
    """A worker that was started; a thread of its own hears what it says.

    Attributes:
        job_id: Its id.
        kind: What it does, a key of `worker.WORK`.
        order: What it was told.
        who: On whose behalf.
        started: When, in seconds since the epoch.
        progress: Stage, done and total, as last told.
        told: What else it told, in order: a dictionary each, such as a gate's figures.
        result: What it made; None until then.
        error: Why it failed; empty if it did not.
    """

    def __init__(self, job_id: str, kind: str, order: Mapping[str, Any], who: str) -> None:
        """Start it.

        Args:
            job_id: Its id.
            kind: A key of `worker.WORK`.
            order: JSON-ready values for it.
            who: On whose behalf; empty for whoever sits at this machine.
        """
        self.job_id, self.kind, self.order, self.who = job_id, kind, dict(order), who
        self.started = time.time()
        self.progress: tuple[str, int, int] | None = None
        self.told: list[dict[str, Any]] = []
        self.result: dict[str, Any] | None = None
        self.error = ""
        self._cancelled = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert self._process.stdin is not None
        # The pipe stays open: a worker whose dashboard is gone sees its end, and stops.
        self._process.stdin.write(json.dumps({"kind": kind, "order": self.order, "who": who}) + "\n")
        self._process.stdin.flush()
        self._complaints: list[str] = []
        self._hearing = [
            threading.Thread(target=self._hear, daemon=True),
            threading.Thread(target=self._hear_complaints, daemon=True),
        ]
        for thread in self._hearing:
            thread.start()

    @property
    def state(self) -> State:
        """Where it is."""
        if any(thread.is_alive() for thread in self._hearing):
            return "running"
        if self.result is not None:
            return "done"
        return "cancelled" if self._cancelled else "failed"

    def cancel(self) -> None:
        """Ask it to stop, as Ctrl-C would."""
        self._cancelled = True
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self, timeout_s: float) -> State:
        """Wait until it ended, but not longer; returns where it is."""
        for thread in self._hearing:
            thread.join(timeout_s)
        return self.state

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            match json.loads(line):
                case {"progress": [str(stage), int(done), int(total)]}:
                    self.progress = (stage, done, total)
                case {"told": dict(told)}:
                    self.told.append(told)
                case {"result": dict(result)}:
                    self.result = result
                case {"error": str(error)}:
                    self.error = error
        code = self._process.wait()
        if self.result is None and not self.error:
            self._hearing[1].join()
            said = "\n".join(self._complaints)
            self.error = f"the work ended with exit code {code} and no result; its last words:\n{said}"

    def _hear_complaints(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._complaints = [*self._complaints, line.rstrip()][-_LAST_LINES:]


class Jobs:
    """The jobs of this server, by id; one that is over stays for a while, for whoever started it to see."""

    def __init__(self) -> None:
        """Begin with none."""
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, kind: str, order: Mapping[str, Any], who: str) -> Job:
        """Start one."""
        with self._lock:
            job = Job(f"{kind}-{time.time_ns():x}", kind, order, who)
            self._jobs[job.job_id] = job
            over = [job_id for job_id, one in self._jobs.items() if one.state != "running"]
            for job_id in over[:-_ENDED_KEPT]:
                del self._jobs[job_id]
            return job

    def find(self, job_id: str) -> Job | None:
        """The job with an id, if it is still known."""
        return self._jobs.get(job_id)

    def all(self, kind: str | None = None) -> list[Job]:
        """All, newest first, or those of a kind."""
        return [job for job in reversed(list(self._jobs.values())) if kind in (None, job.kind)]


@st.cache_resource(show_spinner=False)
def board() -> Jobs:
    """The jobs of this server, the same for every page and every visitor."""
    return Jobs()
