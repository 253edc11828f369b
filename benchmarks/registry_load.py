"""How much the registry takes from several processes at once, and whether it keeps what it acknowledged.

    python benchmarks/registry_load.py load
    python benchmarks/registry_load.py load --owner
    python benchmarks/registry_load.py kill --victim writer      (or owner, actor, lane)

`load`: writers in processes of their own record one event a transaction, as fast as they are acknowledged, while a
reader reads; with `--owner` another process owns the registry meanwhile. Latencies are what a writer waits for one
acknowledgement; the first one of each writer, in which it imports and opens, does not count.
`kill`: again and again, a process is killed with SIGKILL at a random moment while others write, and then every
acknowledged event is looked for: a writer in its turn; an owner that is a plain process; the owner that a search has,
a Ray actor, which Ray starts again; and a process that keeps a lane's log, after which the registry is removed and made
again from its journal and that log.

One JSON document. A registry in a temporary folder, or below `--folder`: what is measured is that folder's disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rankloom_registry import BaseFingerprint, BaseSeen, Registry, SearchStarted, TrialReported, TrialStarted
from rankloom_registry.store.locking import lock_path
from rankloom_registry.store.owner import Owner

Document = dict[str, Any]
ROOT = "c" * 64
TRIAL = "trial-0"
SPAN = 1_000_000  # steps that one writer may use


def load(options: argparse.Namespace, path: Path) -> Document:
    """Let writers and a reader loose on a registry."""
    registry = make_registry(path)
    with _owning(path) if options.owner else _nothing():
        began = time.monotonic()
        writers = [spawn("write", path, SPAN * n, options.transactions) for n in range(options.writers)]
        reader = spawn("read", path)
        outcomes = [_acknowledgements(writer) for writer in writers]
        took = time.monotonic() - began
        reads = [json.loads(line) for line in reader.communicate()[0].splitlines()]
    waits = sorted(wait for acknowledged in outcomes for _, wait in acknowledged[1:])
    busy = max(sum(wait for _, wait in acknowledged[1:]) for acknowledged in outcomes)
    kept = kept_steps(registry)
    promised = {step for acknowledged in outcomes for step, _ in acknowledged}
    return {
        "owner": options.owner,
        "writers": options.writers,
        "transactions": len(promised),
        "errors": options.writers * options.transactions - len(promised) + sum(read["errors"] for read in reads),
        "lost": len(promised - kept),
        "kept_twice": len(registry.step_metrics(TRIAL)) - len(kept),
        "transactions_per_s": round(len(waits) / busy, 1),
        "wait_s": {
            "median": round(median(waits), 4),
            "p99": round(_quantile(waits, 0.99), 4),
            "max": round(waits[-1], 4),
        },
        "reads": sum(read["reads"] for read in reads),
        "longest_read_s": max(read["longest_s"] for read in reads),
        "wall_s": round(took, 2),
    }


def kill(options: argparse.Namespace, path: Path) -> Document:
    """Kill again and again, and look for what was acknowledged."""
    registry = make_registry(path)
    victims: dict[str, Callable[[Registry, int, random.Random], tuple[set[int], int]]] = {
        "writer": kill_writers,
        "owner": kill_owners,
        "actor": kill_actors,
        "lane": kill_lanes,
    }
    promised, failed = victims[options.victim](registry, options.times, random.Random(options.seed))
    return {
        "victim": options.victim,
        "kills": options.times,
        "acknowledged": len(promised),
        "errors": failed,
        "lost": len(promised - kept_steps(registry)),
    }


def kill_writers(registry: Registry, times: int, chance: random.Random) -> tuple[set[int], int]:
    """Kill writers that take turns; each time, all that any of them was promised must be there."""
    promised: set[int] = set()
    for attempt in range(times):
        writer = spawn("write", registry.path, SPAN * attempt, SPAN)
        assert writer.stdout is not None
        for _ in range(chance.randint(1, 4)):
            promised.add(json.loads(writer.stdout.readline())[0])
        time.sleep(chance.uniform(0, 0.1))
        writer.kill()
        promised |= {step for step, _ in _acknowledgements(writer, killed=True)}
        _look_for(promised, registry)
    return promised, 0


def kill_owners(registry: Registry, times: int, chance: random.Random) -> tuple[set[int], int]:
    """Kill owners while two writers write through them; the writers go on by themselves, without an error."""
    promised: set[int] = set()
    failed = 0
    for attempt in range(times):
        with _owning(registry.path) as owner:
            writers = [spawn("write", registry.path, SPAN * (2 * attempt + n), 20) for n in range(2)]
            for writer in writers:
                assert writer.stdout is not None
                promised.add(json.loads(writer.stdout.readline())[0])
            time.sleep(chance.uniform(0, 0.1))
            owner.kill()
            for writer in writers:
                acknowledged = _acknowledgements(writer)
                promised |= {step for step, _ in acknowledged}
                failed += 19 - len(acknowledged)
        _look_for(promised, registry)
    return promised, failed


def kill_actors(registry: Registry, times: int, chance: random.Random) -> tuple[set[int], int]:
    """Kill the actor that owns a registry while a search runs; Ray starts another one each time."""
    from rankloom.cluster.driver import connected
    from rankloom.cluster.owner import owned

    with connected(verbose=False), owned(registry.path):
        writers = [spawn("write", registry.path, SPAN * n, SPAN) for n in range(2)]
        before = 0
        for _ in range(times):
            before = _next_owner(registry.path, before)
            time.sleep(chance.uniform(0, 0.5))
            os.kill(before, signal.SIGKILL)
        _next_owner(registry.path, before)
        promised: set[int] = set()
        failed = 0
        for writer in writers:
            failed += writer.poll() is not None  # nothing but us ends it
            writer.kill()
            promised |= {step for step, _ in _acknowledgements(writer, killed=True)}
    return promised, failed


def kill_lanes(registry: Registry, times: int, chance: random.Random) -> tuple[set[int], int]:
    """Kill processes that keep a lane's log, and make the registry again without its file."""
    from rankloom.cluster.lane import event_log

    run = registry.path.with_suffix(".runs") / "load"
    run.mkdir(parents=True)
    promised: set[int] = set()
    for attempt in range(times):
        reader, writer = os.pipe()
        lane = os.fork()  # to import Ray's half of a lane once
        if not lane:
            with event_log(run, "lane-0") as log, os.fdopen(writer, "wb", buffering=0) as told:
                for step in itertools.count(SPAN * attempt):
                    log.write(report(step).to_json() + "\n")
                    log.flush()
                    os.fsync(log.fileno())
                    told.write(f"{step}\n".encode())
        os.close(writer)
        with os.fdopen(reader) as told_lines:
            promised.add(int(told_lines.readline()))
            time.sleep(chance.uniform(0, 0.05))
            os.kill(lane, signal.SIGKILL)
            os.waitpid(lane, 0)
            # A pipe keeps what was written in one piece whole, but the kill may fall into the last one.
            promised |= {int(line) for line in told_lines if line.endswith("\n")}
    registry.path.unlink()
    report_ = Registry.rebuild(registry.path)
    return promised, len(report_.left_out)


def make_registry(path: Path) -> Registry:
    """Make a registry with one running trial."""
    base = BaseFingerprint(
        identity="org/base@0123",
        structure="5" * 64,
        content_root=ROOT,
        tensors=1,
        parameters=1,
        bytes=2,
        dtype="bfloat16",
        tokenizer_sha256=None,
        chat_template_sha256=None,
        config={},
    )
    registry = Registry.open(path, create=True)
    registry.record(
        BaseSeen(base=base),
        SearchStarted(
            search_id="search-0",
            name="load",
            base_content_root=ROOT,
            dataset={},
            config={},
            metric="eval_loss",
            mode="min",
            num_samples=1,
            seed=0,
        ),
        TrialStarted(trial_id=TRIAL, search_id="search-0", number=0, params={"r": 8}),
    )
    return registry


def report(step: int) -> TrialReported:
    """The event that is written."""
    return TrialReported(trial_id=TRIAL, step=step, metrics={"eval_loss": 1.0, "train_loss": 1.0, "train_tokens": step})


def kept_steps(registry: Registry) -> set[int]:
    """The steps that the registry holds."""
    return {row["step"] for row in registry.sql("SELECT step FROM step_metrics")}


def spawn(role: str, *arguments: object) -> subprocess.Popen[str]:
    """Start this file in a role of its own."""
    command = [sys.executable, __file__, f"_{role}", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def write(path: str, start: str, count: str) -> None:
    """A writer: prints each step with the seconds that its acknowledgement took."""
    registry = Registry.open(path)
    for step in range(int(start), int(start) + int(count)):
        began = time.perf_counter()
        registry.record(report(step))
        print(json.dumps([step, time.perf_counter() - began]), flush=True)


def read(path: str) -> None:
    """A reader: reads until its input ends, and never sees a step go."""
    done: list[bytes] = []
    os.set_blocking(0, False)
    reads, longest, errors, seen = 0, 0.0, 0, 0
    registry = Registry.open(path)
    while not done:
        began = time.perf_counter()
        count = len(registry.step_metrics(TRIAL))
        longest = max(longest, time.perf_counter() - began)
        errors += count < seen
        reads, seen = reads + 1, count
        try:
            done += [os.read(0, 1)]
        except BlockingIOError:
            time.sleep(0.2)
    print(json.dumps({"reads": reads, "longest_s": round(longest, 4), "errors": errors}))


def own(path: str) -> None:
    """An owner, until its input ends."""
    with Owner(Path(path)):
        print("ready", flush=True)
        sys.stdin.read()


@contextmanager
def _owning(path: Path) -> Iterator[subprocess.Popen[str]]:
    owner = spawn("own", path)
    assert owner.stdout is not None and owner.stdin is not None
    if owner.stdout.readline() != "ready\n":
        raise RuntimeError("the owner did not start")
    try:
        yield owner
    finally:
        owner.communicate()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _acknowledgements(writer: subprocess.Popen[str], *, killed: bool = False) -> list[tuple[int, float]]:
    assert writer.stdout is not None
    lines = writer.stdout.read().splitlines(keepends=True)  # communicate() forgets what readline() took too much
    writer.communicate()
    if not killed and writer.returncode:
        print(f"a writer ended with {writer.returncode}", file=sys.stderr)
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]


def _next_owner(path: Path, before: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            signature = json.loads(lock_path(path).read_bytes())
        except ValueError:
            signature = {}
        if "socket" in signature and signature["pid"] != before:
            return int(signature["pid"])
        time.sleep(0.02)
    raise RuntimeError("no owner came up within a minute")


def _look_for(promised: set[int], registry: Registry) -> None:
    if lost := promised - kept_steps(registry):
        raise RuntimeError(f"lost {len(lost)} acknowledged events, such as {min(lost)}")


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    loading = modes.add_parser("load")
    loading.add_argument("--writers", type=int, default=4)
    loading.add_argument("--transactions", type=int, default=500, help="of each writer")
    loading.add_argument("--owner", action="store_true")
    killing = modes.add_parser("kill")
    killing.add_argument("--victim", choices=["writer", "owner", "actor", "lane"], required=True)
    killing.add_argument("--times", type=int, default=40)
    killing.add_argument("--seed", type=int, default=0)
    for mode in (loading, killing):
        mode.add_argument("--folder", type=Path, help="where to make the registry")
    return parser


def main(arguments: Sequence[str]) -> Document:
    """Run one measurement and print it."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="registry-load-", dir=options.folder) as folder:
        document = {"load": load, "kill": kill}[options.mode](options, Path(folder) / "registry.duckdb")
    print(json.dumps(document))
    return document


if __name__ == "__main__":
    roles = {"_write": write, "_read": read, "_own": own}
    if len(sys.argv) > 1 and sys.argv[1] in roles:
        roles[sys.argv[1]](*sys.argv[2:])
    else:
        found = main(sys.argv[1:])
        sys.exit(1 if found["lost"] or found["errors"] else 0)
