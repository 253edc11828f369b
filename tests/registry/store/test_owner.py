"""One process keeps the file, and all others work through it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import duckdb
import pytest

from rankloom_registry import (
    AdapterDiscarded,
    BaseFingerprint,
    BaseSeen,
    EventError,
    Registry,
    RegistryBusyError,
    RegistryError,
    RegistryWriteError,
    TrialReported,
)
from rankloom_registry.store.database import attach
from rankloom_registry.store.journal import Journal, read_log
from rankloom_registry.store.locking import OwnedError, turn
from rankloom_registry.store.owner import Owner
from rankloom_registry.store.service import GoneError, _ask, ask_for_snapshot, ask_to_record
from rankloom_registry.store.snapshots import Snapshots

OWNER = """
import sys
from pathlib import Path
from rankloom_registry.store.owner import Owner
with Owner(Path(sys.argv[1]), publish_s=3600):
    print("ready", flush=True)
    sys.stdin.read()
"""


def reported(step: int, trial: str = "trial-0") -> TrialReported:
    return TrialReported(trial_id=trial, step=step, metrics={"eval_loss": 1.0})


def steps(registry: Registry) -> list[int]:
    return [metrics.step for metrics in registry.step_metrics("trial-0")]


def door(registry: Registry) -> str:
    return str(json.loads(Path(f"{registry.path}.lock").read_text())["socket"])


@pytest.fixture
def start_owner(searched: Registry, child_environment: dict[str, str]) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", OWNER, str(searched.path)]
        owner = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment
        )
        started.append(owner)
        assert owner.stdout is not None and owner.stdout.readline() == "ready\n"
        return owner

    yield start
    for owner in started:
        owner.communicate(timeout=60)


def test_a_registry_works_through_an_owner_in_another_process(
    searched: Registry, start_owner: Callable[[], subprocess.Popen[str]]
) -> None:
    searched.record(reported(1))
    owner = start_owner()
    assert searched.record(reported(2), reported(3)) == 2
    assert searched.record(reported(3)) == 0
    assert steps(Registry.open(searched.path)) == [1]  # another one sees the last snapshot
    assert steps(searched) == [1, 2, 3]  # what it has recorded itself, whatever was published last
    assert searched.sql("select max(step) as last from step_metrics") == [{"last": 3}]
    with pytest.raises(EventError, match="'ghost'"):
        searched.record(reported(4), reported(4, trial="ghost"))
    owner.communicate(timeout=60)
    assert steps(Registry.open(searched.path)) == [1, 2, 3]
    assert steps_of_journal(searched) == [1, 2, 3]
    assert Path(f"{searched.path}.lock").read_bytes() == b""


def steps_of_journal(registry: Registry) -> list[int]:
    events = read_log(Journal(registry.path).path).events
    return [event.step for event in events if isinstance(event, TrialReported)]


def test_a_registry_works_through_an_owner_in_its_own_process(searched: Registry) -> None:
    with Owner(searched.path, publish_s=3600):
        searched.record(reported(1))
        assert steps(searched) == [1]
        assert len(Registry.open(searched.path, create=True).adapters()) == 4
    assert steps(searched) == [1]


def test_when_the_owner_is_killed_everybody_takes_turns_again(
    searched: Registry, start_owner: Callable[[], subprocess.Popen[str]]
) -> None:
    owner = start_owner()
    searched.record(reported(1))
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert steps(searched) == [1]
    searched.record(reported(2))
    start_owner()
    searched.record(reported(3))
    assert steps(searched) == [1, 2, 3]


def test_writers_go_on_when_the_owner_is_killed_under_them(
    searched: Registry, start_owner: Callable[[], subprocess.Popen[str]]
) -> None:
    for attempt in range(2):
        owner = start_owner()
        acknowledged: list[int] = []

        def write(start: int, acknowledged: list[int] = acknowledged) -> None:
            registry = Registry.open(searched.path)
            for step in range(start, start + 6):
                registry.record(reported(step))
                acknowledged.append(step)

        writers = [threading.Thread(target=write, args=(1000 * attempt + 100 * number,)) for number in range(2)]
        for writer in writers:
            writer.start()
        while len(acknowledged) < 3 + 2 * attempt:
            time.sleep(0.001)
        owner.send_signal(signal.SIGKILL)
        for writer in writers:
            writer.join()
        assert len(acknowledged) == 12
        assert set(acknowledged) <= set(steps(searched))
        assert len(steps(searched)) == 12 * (attempt + 1)


def test_many_senders_share_a_commit_and_each_mistake_is_its_senders_only(searched: Registry) -> None:
    with Owner(searched.path) as owner:
        failures: list[str] = []
        acks = []

        def send(number: int) -> None:
            trial = "ghost" if number % 5 == 0 else "trial-0"
            try:
                acks.append(owner.record([reported(number), reported(100 + number, trial=trial)]))
            except EventError as error:
                failures.append(str(error))

        senders = [threading.Thread(target=send, args=(number,)) for number in range(20)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    good = [number for number in range(20) if number % 5]
    assert len(failures) == 4 and all("'ghost'" in failure for failure in failures)
    assert [ack.applied for ack in acks] == [2] * 16
    assert steps(searched) == sorted([*good, *(100 + number for number in good)])


def test_an_owner_publishes_by_itself_and_on_demand(searched: Registry) -> None:
    snapshots = Snapshots(searched.path)
    with Owner(searched.path, publish_s=0.05) as owner:
        first = snapshots.latest()
        assert first is not None and first.sequence == 10
        ack = owner.record([reported(1)])
        deadline = time.monotonic() + 30
        while (latest := snapshots.latest()) is None or latest.sequence < ack.sequence:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert owner.snapshot(ack.sequence) == latest
        assert owner.snapshot(10**9) == latest  # all there is
    with Owner(searched.path, publish_s=3600) as owner:
        before = owner.snapshot()
        ack = owner.record([reported(2)])
        assert owner.snapshot() == before
        assert owner.snapshot(ack.sequence).sequence == ack.sequence
        assert len(list(snapshots.folder.glob("registry-*.duckdb"))) == 2


def test_snapshots_go_with_their_owner(searched: Registry) -> None:
    folder = Snapshots(searched.path).folder
    with ExitStack() as reader:
        with Owner(searched.path, publish_s=3600):
            searched.record(reported(1))
            open_copy = reader.enter_context(attach(searched.snapshot(), write=False, timeout_s=1))
            assert {path.suffix for path in folder.iterdir()} == {".json", ".duckdb"}
        searched.record(reported(2))  # as a search records its end, when the owner is gone
        assert not folder.exists()
        assert steps(searched) == [1, 2]
        assert open_copy.execute("SELECT step FROM step_metrics").fetchall() == [(1,)]  # who has one open reads on
    (folder / "mine").mkdir(parents=True)
    with Owner(searched.path):
        pass
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_readers_go_on_when_the_owner_ends_under_them(searched: Registry) -> None:
    read: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            read.append(len(Registry.open(searched.path).adapters()))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(5):
        with Owner(searched.path):
            count = len(read)
            while reader.is_alive() and len(read) < count + 2:
                time.sleep(0.001)
    assert reader.is_alive()
    over.set()
    reader.join()
    assert set(read) == {4}


def test_a_file_has_one_owner(searched: Registry, start_owner: Callable[[], subprocess.Popen[str]]) -> None:
    owner = start_owner()
    with pytest.raises(RegistryBusyError, match=str(owner.pid)), Owner(searched.path):
        pass
    with pytest.raises(OwnedError) as caught, turn(searched.path, write=True, timeout_s=1):
        pass
    assert caught.value.socket == door(searched)


def test_an_owner_needs_a_registry_of_the_newest_schema(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Owner(tmp_path / "none.duckdb"):
        pass
    duckdb.connect(str(tmp_path / "empty.duckdb")).close()
    with pytest.raises(ValueError, match="older version"), Owner(tmp_path / "empty.duckdb"):
        pass
    with turn(tmp_path / "empty.duckdb", write=True, timeout_s=1):
        pass


def test_nothing_is_rebuilt_or_migrated_under_an_owner(
    searched: Registry, start_owner: Callable[[], subprocess.Popen[str]]
) -> None:
    owner = start_owner()
    with pytest.raises(RegistryBusyError, match=str(owner.pid)):
        Registry.rebuild(searched.path)


def test_an_owner_that_can_write_no_longer_gives_the_file_up(
    searched: Registry, child_environment: dict[str, str]
) -> None:
    script = """
import resource, sys
from pathlib import Path
from rankloom_registry import AdapterDiscarded, Registry, RegistryWriteError
from rankloom_registry.store.owner import Owner
path = Path(sys.argv[1])
registry = Registry.open(path)
size = path.stat().st_size
with Owner(path) as owner:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, resource.RLIM_INFINITY))
    try:
        owner.record([AdapterDiscarded(adapter_id="0bcd-adapter", reason="x" * size)])
    except RegistryWriteError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    registry.record(AdapterDiscarded(adapter_id="1bcd-adapter", reason=""))
    print(owner.over)
"""
    command = [sys.executable, "-c", script, str(searched.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout and done.stdout.endswith("True\n")
    assert searched.adapter("1bcd").status == "discarded"


def test_after_its_end_an_owner_sends_callers_away(searched: Registry) -> None:
    with Owner(searched.path) as owner:
        there = door(searched)
        with pytest.raises(RegistryError, match="same version"):
            _ask(there, {"drop": "everything"}, 5)
    for use in (
        lambda: owner.record([reported(1)]),
        owner.snapshot,
        lambda: ask_to_record(there, [reported(1)], timeout_s=1),
        lambda: ask_for_snapshot(there, 0, timeout_s=1),
    ):
        with pytest.raises(GoneError):
            use()
    assert not Path(there).parent.exists()


def test_only_this_user_may_enter(searched: Registry) -> None:
    with Owner(searched.path):
        assert Path(door(searched)).parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter everywhere")
def test_another_user_reads_what_was_published_and_cannot_record(searched: Registry) -> None:
    with Owner(searched.path):
        folder = Path(door(searched)).parent
        folder.chmod(0)
        try:
            assert len(searched.adapters()) == 4
            with pytest.raises(RegistryBusyError, match="another user"):
                searched.record(reported(1))
        finally:
            folder.chmod(0o700)


def test_a_signature_that_a_killed_owner_left_is_no_obstacle(searched: Registry, tmp_path: Path) -> None:
    lock = Path(f"{searched.path}.lock")
    lock.write_text(json.dumps({"pid": 1, "host": "h", "command": "c", "socket": str(tmp_path / "gone")}))
    with lock.open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)  # as a program that reads does, which does not sign
        with pytest.raises(RegistryBusyError):
            Registry(searched.path, searched.path, wait_s=0.1).record(reported(1))
        release = threading.Timer(0.2, fcntl.flock, (reader, fcntl.LOCK_UN))
        release.start()
        assert searched.record(reported(1)) == 1
        release.join()
    assert steps(searched) == [1]


def test_a_snapshot_is_a_whole_registry(searched: Registry, base: BaseFingerprint) -> None:
    searched.record(reported(1))
    first, second = searched.snapshot(), searched.snapshot()
    assert (first.name, second.name) == ("registry-000001.duckdb", "registry-000002.duckdb")
    searched.record(BaseSeen(base=base, event_id="later"))
    third = searched.snapshot()
    assert not first.exists() and second.exists()
    pointer = json.loads((third.parent / "latest.json").read_text())
    assert (pointer["file"], pointer["sequence"]) == (third.name, 12)
    assert {path.name for path in third.parent.iterdir()} == {second.name, third.name, "latest.json"}
    with attach(third, write=False, timeout_s=1) as connection:
        assert connection.execute("SELECT count(*) FROM adapters").fetchall() == [(4,)]
        assert connection.execute("SELECT max(step) FROM step_metrics").fetchall() == [(1,)]
    third.rename(searched.path)  # a way back
    assert len(Registry.open(searched.path).adapters()) == 4
    searched.record(AdapterDiscarded(adapter_id="0bcd-adapter", reason=""))


def test_a_snapshot_that_cannot_be_written_is_a_message(searched: Registry) -> None:
    Snapshots(searched.path).folder.write_text("a file is in the way")
    with pytest.raises(RegistryWriteError, match="snapshots"):
        searched.snapshot()
    assert len(searched.adapters()) == 4
