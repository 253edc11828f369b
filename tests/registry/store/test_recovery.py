"""What is left after a program died: write-ahead logs, whole and damaged, and nothing but logs."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rankloom_registry import (
    AliasMoved,
    Registry,
    RegistryBusyError,
    RegistryError,
    RegistryNotFoundError,
    SearchEnded,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from rankloom_registry.errors import RegistryRecoveredWarning
from rankloom_registry.store.journal import Journal, read_log
from rankloom_registry.store.locking import turn
from rankloom_registry.store.recovery import wal_path

# Dies with five events in the write-ahead log, and the file as it was before.
DIES = """
import os, sys
from pathlib import Path
from rankloom_registry import TrialReported
from rankloom_registry.store.database import attach
from rankloom_registry.store.journal import Journal
from rankloom_registry.store.ledger import commit
from rankloom_registry.store.locking import turn
path = Path(sys.argv[1])
with turn(path, write=True, timeout_s=5), attach(path, write=True, timeout_s=5) as connection:
    for step in range(1, 6):
        commit(connection, Journal(path), [[TrialReported(trial_id="trial-0", step=step, metrics={"eval_loss": 1.0})]])
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def died(searched: Registry, child_environment: dict[str, str]) -> Registry:
    command = [sys.executable, "-c", DIES, str(searched.path)]
    done = subprocess.run(command, env=child_environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert wal_path(searched.path).stat().st_size > 0
    return searched


def steps(registry: Registry) -> list[int]:
    return [metrics.step for metrics in registry.step_metrics("trial-0")]


def state(registry: Registry) -> list[list[dict[str, Any]]]:
    """Everything that a registry says."""
    views = registry.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY view_name")
    return [registry.sql(f"FROM {view['view_name']} ORDER BY ALL") for view in views]


def test_a_whole_log_is_replayed_without_a_word(died: Registry, recwarn: pytest.WarningsRecorder) -> None:
    assert steps(died) == [1, 2, 3, 4, 5]
    assert not wal_path(died.path).exists()
    assert [str(warning.message) for warning in recwarn] == []
    assert list(died.path.parent.glob("*.wal*")) == []


@pytest.mark.parametrize("use", ["read", "record", "open"])
def test_a_log_that_cannot_be_replayed_is_set_aside_and_the_journal_folded_again(died: Registry, use: str) -> None:
    wal = wal_path(died.path)
    content = bytearray(wal.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = b"\xff" * 8
    wal.write_bytes(content)
    uses: dict[str, Callable[[], object]] = {
        "read": died.searches,
        "record": lambda: died.record(TrialReported(trial_id="trial-0", step=6, metrics={})),
        "open": lambda: Registry.open(died.path),
    }
    with pytest.warns(RegistryRecoveredWarning, match=r"recorded again from the journal; .*\.wal\.broken-") as caught:
        uses[use]()
    assert len(caught) == 1
    assert steps(died) == [1, 2, 3, 4, 5] + [6] * (use == "record")
    (aside,) = died.path.parent.glob("registry.duckdb.wal.broken-*")
    assert aside.read_bytes() == content


def test_whatever_damage_a_log_has_nothing_acknowledged_is_lost(died: Registry, tmp_path: Path) -> None:
    whole = wal_path(died.path).read_bytes()
    chance = random.Random(0)
    places = [0, 1, 8, 16, 40, *(chance.randrange(len(whole)) for _ in range(12))]
    for number, place in enumerate(places):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in (died.path, Journal(died.path).path):
            shutil.copy(file, folder)
        copy = folder / died.path.name
        damaged = bytearray(whole)
        damaged[place : place + 6] = bytes(byte ^ 0x5A for byte in damaged[place : place + 6])
        wal_path(copy).write_bytes(damaged)
        with pytest.warns(RegistryRecoveredWarning):
            registry = Registry.open(copy)
        assert steps(registry) == [1, 2, 3, 4, 5], place
        assert [file.read_bytes() for file in folder.glob("*.broken-*")] == [damaged]


def test_a_recovery_that_died_is_done_again(died: Registry) -> None:
    wal = wal_path(died.path)
    wal.rename(f"{wal}.recovering")  # as after the death of who removed the log and had not folded the journal yet
    with pytest.warns(RegistryRecoveredWarning):
        assert steps(died) == [1, 2, 3, 4, 5]
    assert len(list(died.path.parent.glob("*.wal*"))) == 1


def test_a_file_that_cannot_be_opened_without_its_log_either_is_left_as_it_was(died: Registry) -> None:
    died.path.write_bytes(b"damage" * 10_000)
    before = {path: path.read_bytes() for path in (died.path, wal_path(died.path))}
    for use in (died.searches, lambda: died.record(TrialReported(trial_id="trial-0", step=6, metrics={}))):
        with pytest.raises(RegistryError, match=r"registry\.duckdb"):
            use()
    assert {path: path.read_bytes() for path in before} == before
    assert Registry.rebuild(died.path).left_out == ()
    assert steps(died) == [1, 2, 3, 4, 5]


def test_a_registry_is_made_again_from_its_journal(searched: Registry) -> None:
    searched.record(
        TrialReported(trial_id="trial-0", step=1, metrics={"eval_loss": 1.5}),
        AliasMoved(name="first", alias="live", adapter_id="1bcd-adapter"),
        AliasMoved(name="first", alias="live", adapter_id="2bcd-adapter"),
        TrialEnded(trial_id="trial-0", status="completed", metrics={"eval_loss": float("nan")}),
        SearchEnded(search_id="search-1", status="completed"),
    )
    before = state(searched)
    content = searched.path.read_bytes()
    report = Registry.rebuild(searched.path)
    assert (report.events, report.from_logs, report.torn, report.left_out) == (15, 0, 0, ())
    assert report.set_aside is not None and report.set_aside.read_bytes() == content
    assert repr(state(searched)) == repr(before)  # NaN equals nothing
    searched.path.unlink()
    again = Registry.rebuild(searched.path)
    assert (again.events, again.set_aside) == (15, None)
    assert repr(state(Registry.open(searched.path))) == repr(before)


def test_a_registry_without_a_journal_is_made_again_from_its_file(searched: Registry) -> None:
    before = state(searched)
    assert Registry.rebuild(searched.path).events == 10
    assert state(searched) == before
    assert len(read_log(Journal(searched.path).path).events) == 10


def test_what_only_the_lanes_logged_is_recorded_where_it_belongs_in_time(searched: Registry) -> None:
    started = TrialStarted(trial_id="trial-9", search_id="search-1", number=9, params={"r": 4}, lane="lane-0")
    reported = TrialReported(trial_id="trial-9", step=5, metrics={"eval_loss": 1.25})
    ghost = TrialReported(trial_id="ghost", step=1, metrics={})
    log = searched.path.with_suffix(".runs") / "first" / "events" / "lane-0.jsonl"
    log.parent.mkdir(parents=True)
    lines = [event.to_json() for event in (started, reported, ghost)]
    log.write_text("\n".join([*lines, '{"kind":"trial_en']))
    searched.record(SearchEnded(search_id="search-1", status="interrupted", at=datetime.now(UTC)))
    for _ in range(2):
        report = Registry.rebuild(searched.path)
        assert (report.torn, report.events) == (1, 13)
        assert len(report.left_out) == 1 and "'ghost'" in report.left_out[0]
        trial = searched.trials("search-1")[-1]
        assert (trial.trial_id, trial.status, trial.eval_loss) == ("trial-9", "interrupted", 1.25)
    assert started in read_log(Journal(searched.path).path).events


def test_logs_of_runs_that_lie_elsewhere(searched: Registry, tmp_path: Path) -> None:
    log = tmp_path / "elsewhere" / "first" / "events" / "lane-0.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(TrialReported(trial_id="trial-0", step=7, metrics={}).to_json())
    assert Registry.rebuild(searched.path).from_logs == 0
    assert Registry.rebuild(searched.path, runs=[tmp_path / "elsewhere"]).from_logs == 1
    assert steps(searched) == [7]


def test_where_the_artifacts_lie_is_known_after_the_file_is_lost(searched: Registry, tmp_path: Path) -> None:
    searched.record(TrialReported(trial_id="trial-0", step=1, metrics={}))
    searched.path.rename(tmp_path / "renamed.duckdb")
    Journal(searched.path).path.rename(tmp_path / "renamed.events.jsonl")
    (tmp_path / "renamed.duckdb").unlink()
    Registry.rebuild(tmp_path / "renamed.duckdb")
    assert Registry.open(tmp_path / "renamed.duckdb").adapter("first-0").artifact_path is not None
    assert "registry.artifacts" in str(Registry.open(tmp_path / "renamed.duckdb").adapter("first-0").artifact_path)


def test_there_must_be_something_to_make_a_registry_from(tmp_path: Path) -> None:
    with pytest.raises(RegistryNotFoundError, match=r"registry\.events\.jsonl"):
        Registry.rebuild(tmp_path / "registry.duckdb")
    with pytest.raises(RegistryNotFoundError, match="no folder"):
        Registry.rebuild(tmp_path / "nowhere" / "registry.duckdb")
    assert {path.name for path in tmp_path.iterdir()} == {"registry.duckdb.lock"}


def test_nothing_is_rebuilt_while_somebody_writes(searched: Registry, child_environment: dict[str, str]) -> None:
    script = """
import sys
from pathlib import Path
from rankloom_registry.store.locking import turn
with turn(Path(sys.argv[1]), write=True, timeout_s=5):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(searched.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(RegistryBusyError, match=str(holder.pid)):
        Registry.rebuild(searched.path, wait_s=0.1)
    holder.communicate()
    with turn(searched.path, write=True, timeout_s=1):
        pass
