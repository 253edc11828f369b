"""Several processes, threads and sudden deaths on one registry file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from rankloom_registry import BaseFingerprint, BaseSeen, Registry, RegistryBusyError, RegistryWriteError, TrialReported

WRITER = """
import sys
from rankloom_registry import Registry, TrialReported
path, start, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
registry = Registry.open(path)
for step in range(start, start + count):
    registry.record(TrialReported(trial_id="trial-0", step=step, metrics={"eval_loss": 1.0}))
    print(step, flush=True)
"""

READER = """
import sys
from rankloom_registry import Registry
registry = Registry.open(sys.argv[1])
for _ in range(20):
    steps = [metrics.step for metrics in registry.step_metrics("trial-0")]
    assert len(steps) == len(set(steps))
    print(len(steps), flush=True)
"""

HOLDER = """
import sys, time
from pathlib import Path
from rankloom_registry.store.locking import turn
with turn(Path(sys.argv[1]), write=sys.argv[2] == "write", timeout_s=5):
    print("held", flush=True)
    time.sleep(60)
"""


def start(script: str, *arguments: object, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_nothing_is_lost_between_four_writers_and_a_reader(
    searched: Registry, child_environment: dict[str, str]
) -> None:
    writers = [start(WRITER, searched.path, 1000 * n, 40, environment=child_environment) for n in range(4)]
    reader = start(READER, searched.path, environment=child_environment)
    acknowledged = [int(line) for writer in writers for line in writer.communicate()[0].split()]
    seen = [int(line) for line in reader.communicate()[0].split()]
    assert [process.returncode for process in (*writers, reader)] == [0] * 5
    assert len(acknowledged) == 160
    assert [metrics.step for metrics in searched.step_metrics("trial-0")] == sorted(acknowledged)
    assert len(seen) == 20 and seen == sorted(seen)


def test_what_was_acknowledged_survives_a_kill(searched: Registry, child_environment: dict[str, str]) -> None:
    acknowledged: set[int] = set()
    for attempt in range(5):
        writer = start(WRITER, searched.path, 1000 * attempt, 1000, environment=child_environment)
        assert writer.stdout is not None
        for _ in range(3 + attempt):
            acknowledged.add(int(writer.stdout.readline()))
        time.sleep(0.004 * attempt)  # to die at other points of the next transaction
        writer.send_signal(signal.SIGKILL)
        acknowledged.update(int(line) for line in writer.communicate()[0].splitlines())
        kept = {metrics.step for metrics in searched.step_metrics("trial-0")}
        assert acknowledged <= kept
        assert len(kept) <= len(acknowledged) + attempt + 1  # at most one a kill was kept and not acknowledged
    assert len(acknowledged) >= 25
    searched.record(TrialReported(trial_id="trial-0", step=9999, metrics={}))


def test_threads_of_one_process_take_turns(searched: Registry) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            registry = Registry.open(searched.path) if number % 2 else searched
            for step in range(5):
                registry.record(TrialReported(trial_id="trial-0", step=10 * number + step, metrics={}))
                registry.adapters(limit=1)
        except BaseException as failure:  # noqa: BLE001 - a thread's failure is the test's
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(searched.step_metrics("trial-0")) == 20


@pytest.mark.parametrize(("held", "holder"), [("write", "process {pid} on "), ("read", "other processes that read")])
def test_a_wait_is_bounded_and_names_the_holder(
    searched: Registry, base: BaseFingerprint, child_environment: dict[str, str], held: str, holder: str
) -> None:
    process = start(HOLDER, searched.path, held, environment=child_environment)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        impatient = Registry(searched.path, searched.artifacts.root, wait_s=0.1)
        with pytest.raises(RegistryBusyError, match=holder.format(pid=process.pid)):
            impatient.record(BaseSeen(base=base))
        if held == "write":
            with pytest.raises(RegistryBusyError, match=str(process.pid)):
                impatient.searches()
        else:
            assert len(impatient.searches()) == 1
    finally:
        process.kill()
        process.communicate()
    assert searched.record(BaseSeen(base=base)) == 0  # the lock died with its holder


def test_a_forked_process_does_not_keep_the_lock(searched: Registry, child_environment: dict[str, str]) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from rankloom_registry.store.locking import turn
path = Path(sys.argv[1])
with turn(path, write=True, timeout_s=5):
    child = os.fork()
    if not child:
        with turn(Path(sys.argv[1] + "-other"), write=True, timeout_s=5):
            signal.pause()
with turn(path, write=True, timeout_s=0.2):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
    process = start(script, searched.path, environment=child_environment)
    assert process.wait(timeout=60) == 0


def test_after_a_read_nothing_holds_the_file_and_a_process_may_fork(
    searched: Registry, child_environment: dict[str, str]
) -> None:
    script = """
import os, sys
from rankloom_registry import Registry
registry = Registry.open(sys.argv[1])
assert len(registry.searches()) == 1
opened = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
assert sys.argv[1] not in opened, opened
child = os.fork()
assert len(registry.searches()) == 1
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    process = start(script, searched.path, environment=child_environment)
    assert process.wait(timeout=60) == 0


def test_another_program_that_has_the_file_open_is_named(searched: Registry, child_environment: dict[str, str]) -> None:
    script = "import duckdb, sys, time; c = duckdb.connect(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    process = start(script, searched.path, environment=child_environment)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(RegistryBusyError, match=str(process.pid)):
            Registry(searched.path, searched.artifacts.root, wait_s=0.1).searches()
    finally:
        process.kill()
        process.communicate()
    assert len(searched.searches()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere, so nothing is read-only")
def test_a_reader_needs_no_right_to_write(searched: Registry, tmp_path: Path) -> None:
    for path in (tmp_path / "registry.duckdb.lock", searched.path):
        path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        assert len(searched.adapters()) == 4
        with pytest.raises(RegistryWriteError):
            searched.record(TrialReported(trial_id="trial-0", step=1, metrics={}))
    finally:
        tmp_path.chmod(0o755)


def test_a_writer_signs_the_lock_while_it_has_it(searched: Registry, child_environment: dict[str, str]) -> None:
    process = start(HOLDER, searched.path, "write", environment=child_environment)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        signature = json.loads(Path(f"{searched.path}.lock").read_text())
        assert signature["pid"] == process.pid and set(signature) == {"pid", "host", "command"}
    finally:
        process.kill()
        process.communicate()
    searched.record(TrialReported(trial_id="trial-0", step=1, metrics={}))
    assert Path(f"{searched.path}.lock").read_bytes() == b""


def test_the_file_is_a_plain_duckdb_database(searched: Registry) -> None:
    with duckdb.connect(str(searched.path), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM adapters").fetchall() == [(4,)]
