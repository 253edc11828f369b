from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from rankloom_registry import AdapterDiscarded, Registry

Rankloom = Callable[..., Any]


def test_the_registry_commands_are_there(rankloom: Rankloom) -> None:
    done = rankloom("registry", "--help")
    assert all(name in done.out for name in ("rebuild", "snapshot", "gc", "migrate", "sql"))


def test_a_query_is_a_table_or_json(rankloom: Rankloom, world: Any) -> None:
    flags = ("--registry", world.registry)
    query = "select adapter_id, eval_loss from adapters order by eval_loss"
    done = rankloom("registry", "sql", query, *flags)
    assert (done.code, done.err) == (0, "")
    header, *lines = done.out.splitlines()
    assert header.split() == ["adapter_id", "eval_loss"]
    assert [line.split()[0] for line in lines] == list(world.adapters)
    found = rankloom("registry", "sql", query, "--json", "--limit", "1", *flags)
    assert [row["adapter_id"] for row in found.json] == [world.adapters[0]]
    assert rankloom("registry", "sql", "select 1 where false", *flags).out == ""
    assert rankloom("registry", "sql", "select 1 where false", "--json", *flags).json == []


def test_a_query_reads_and_does_nothing_else(rankloom: Rankloom, world: Any) -> None:
    for query in ("delete from store.adapters", "select * from read_text('/etc/passwd')", "not sql at all"):
        done = rankloom("registry", "sql", query, "--registry", world.registry)
        assert done.code == 1 and done.out == "" and done.err.startswith("error: "), query
    assert len(Registry.open(world.registry).adapters()) == 2


def test_a_snapshot_prints_where_it_lies(rankloom: Rankloom, world: Any) -> None:
    done = rankloom("registry", "snapshot", "--registry", world.registry)
    assert (done.code, done.err) == (0, "")
    file = Path(done.out.strip())
    with duckdb.connect(str(file), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM adapters").fetchall() == [(2,)]
    found = rankloom("registry", "snapshot", "--json", "--registry", world.registry).json
    assert Path(found["file"]).stat().st_size == found["bytes"]


def test_a_registry_is_rebuilt_after_its_file_is_lost(rankloom: Rankloom, world: Any) -> None:
    flags = ("--registry", world.registry)
    Registry.open(world.registry).record(AdapterDiscarded(adapter_id=world.adapters[1], reason="space"))
    before = rankloom("adapters", "list", "--json", *flags).json
    world.registry.unlink()
    done = rankloom("registry", "rebuild", *flags)
    assert (done.code, done.err) == (0, "")
    assert rankloom("adapters", "list", "--json", *flags).json == before
    report = rankloom("registry", "rebuild", "--json", *flags).json
    assert report["left_out"] == [] and Path(report["set_aside"]).exists()
    missing = rankloom("registry", "rebuild", "--registry", world.registry.with_name("none.duckdb"))
    assert missing.code == 1 and "nothing to make" in missing.err


def test_an_old_registry_is_migrated(rankloom: Rankloom, world: Any, tmp_path: Path) -> None:
    done = rankloom("registry", "migrate", "--registry", world.registry)
    assert done.code == 0 and "nothing to do" in done.out
    empty = tmp_path / "empty.duckdb"
    duckdb.connect(str(empty)).close()
    assert "registry migrate" in rankloom("adapters", "list", "--registry", empty).err
    found = rankloom("registry", "migrate", "--json", "--registry", empty).json
    assert found["migrations"][0] == "0001-first"
    assert rankloom("adapters", "list", "--json", "--registry", empty).json == []
    assert rankloom("registry", "migrate", "--registry", tmp_path / "none.duckdb").code == 1


def test_garbage_is_named_before_it_is_removed(rankloom: Rankloom, world: Any) -> None:
    registry = Registry.open(world.registry)
    dropped = registry.adapter(world.adapters[1])
    registry.record(AdapterDiscarded(adapter_id=dropped.adapter_id, reason="space"))
    flags = ("--registry", world.registry)
    assert dropped.artifact_path is not None and dropped.artifact_path.exists()
    young = rankloom("registry", "gc", "--json", *flags).json
    assert (young["removed"], young["young"]) == ([], 1)
    dry = rankloom("registry", "gc", "--grace", "0s", "--dry-run", *flags)
    assert dropped.artifact_sha256 in dry.out and "would free" in dry.out
    assert dropped.artifact_path.exists()
    found = rankloom("registry", "gc", "--grace", "0s", "--json", *flags).json
    assert found["removed"] == [dropped.artifact_sha256]
    assert not dropped.artifact_path.exists()
    registry.verify(registry.adapter(world.adapters[0]))
    assert rankloom("registry", "gc", "--grace", "soon", *flags).code == 2


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_what_was_recovered_is_a_line_on_stderr(rankloom: Rankloom, world: Any, flags: tuple[str, ...]) -> None:
    script = """
import os, sys
from pathlib import Path
from rankloom_registry import AdapterDiscarded
from rankloom_registry.store.database import attach
from rankloom_registry.store.journal import Journal
from rankloom_registry.store.ledger import commit
from rankloom_registry.store.locking import turn
path = Path(sys.argv[1])
with turn(path, write=True, timeout_s=5), attach(path, write=True, timeout_s=5) as connection:
    commit(connection, Journal(path), [[AdapterDiscarded(adapter_id=sys.argv[2], reason="space")]])
    os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", script, str(world.registry), world.adapters[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=environment, timeout=120).returncode == -signal.SIGKILL
    wal = Path(f"{world.registry}.wal")
    wal.write_bytes(b"\xff" * wal.stat().st_size)
    done = rankloom("adapters", "list", *flags, "--registry", world.registry)
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("warning: a program died") and ".wal.broken-" in line
    if flags:
        assert {row["status"] for row in json.loads(done.out)} == {"available", "discarded"}
    assert rankloom("adapters", "list", "--registry", world.registry).err == ""
