"""A program that works for the dashboard, and what it has said so far."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any, Literal, TypeVar

import streamlit as st

_Kind = TypeVar("_Kind", bound="Job")
State = Literal["running", "done", "failed", "cancelled"]
WORKER = "rankloom_dashboard.jobs.worker"
_LAST_LINES = 20
_LONGEST_LINE = 2_000  # characters of a complaint that are kept
_ENDED_KEPT = 50
_LAST_WORDS_S = 2.0  # for complaints on their way when the worker has ended; a program of its own may hold the pipe


class Job:
    """A worker that was started; threads of its own hear what it says.

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
        self._complaints: list[str] = []
        self._saying = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER],  # not the folder in which the dashboard was started
            # No request leaves the machine, whatever a dataset or a base is called.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            # Ctrl-C in a terminal is for the server, whose end interrupts the worker: twice cuts its cleanup short.
            process_group=0,
        )
        self._complaining = threading.Thread(target=self._hear_complaints, daemon=True)
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._complaining.start()
        self._hearing.start()
        # The pipe stays open: a worker whose dashboard is gone sees its end, and stops.
        self.say({"kind": kind, "order": self.order, "who": who})

    @property
    def state(self) -> State:
        """Where it is."""
        if self._hearing.is_alive():
            return "running"
        if self.result is not None:
            return "done"
        return "cancelled" if self._cancelled else "failed"

    def say(self, message: Mapping[str, Any]) -> None:
        """Tell it something more; one that has ended hears nothing."""
        with self._saying, suppress(BrokenPipeError, ValueError):  # it has ended, or its pipe is closed
            _pipe(self._process.stdin).write(json.dumps(message) + "\n")
            _pipe(self._process.stdin).flush()

    def cancel(self) -> None:
        """Ask it to stop, as Ctrl-C would."""
        if self.state == "running":
            self._cancelled = True
        self._close()

    def wait(self, timeout_s: float) -> State:
        """Wait until it ended, but not longer; returns where it is."""
        self._hearing.join(timeout_s)
        return self.state

    def take(self, message: Mapping[str, Any]) -> None:
        """Keep what it said."""
        match message:
            case {"progress": [str(stage), int(done), int(total)]}:
                self.progress = (stage, done, total)
            case {"told": dict(told)}:
                self.told.append(told)
            case {"result": dict(result)}:
                self.result = result
            case {"error": str(error)}:
                self.error = error

    def _hear(self) -> None:
        for line in _pipe(self._process.stdout):
            with suppress(ValueError):  # half a line of a worker that died
                self.take(json.loads(line))
        code = self._process.wait()
        self._complaining.join(_LAST_WORDS_S)
        self._close()
        if self.result is None and not self.error:
            said = "\n".join(self._complaints)
            self.error = f"the work ended with exit code {code} and no result; its last words:\n{said}"

    def _hear_complaints(self) -> None:
        for line in iter(lambda: _pipe(self._process.stderr).readline(_LONGEST_LINE), ""):
            self._complaints = [*self._complaints, line.rstrip()][-_LAST_LINES:]

    def _close(self) -> None:
        with self._saying, suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # Popen was asked for it
    return stream


class Jobs:
    """The jobs of this server, by id; one that is over stays for a while, for whoever started it to see."""

    def __init__(self) -> None:
        """Begin with none."""
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, kind: str, order: Mapping[str, Any], who: str, *, make: type[_Kind] = Job) -> _Kind:  # type: ignore[assignment]
        """Start one."""
        with self._lock:
            job = make(f"{kind}-{time.time_ns():x}", kind, order, who)
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
