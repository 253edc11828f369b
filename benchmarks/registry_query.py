"""How long a registry of a million adapters takes to answer.

Usage: python benchmarks/registry_query.py [--adapters 1000000] [--repeats 30] [--output run.json]
Fills a registry in a temporary folder straight through its tables and prints one JSON document, in milliseconds: the
20 best adapters of one base with r <= 16, as a program asks and with the file held open; the same from the command
line, beside what the command line takes to start; and the query written as SQL. All of it again with 1,000 adapters.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from rankloom_registry import Registry
from rankloom_registry.reader import Reader
from rankloom_registry.store.access import attached

COMMAND = [sys.executable, "-c", "from rankloom.cli import main; main()"]
# $trials trials a search, 8 bases, ranks 4 to 64; losses without order, every 50th missing, and many of them equal.
FILL = """
CREATE TEMP TABLE made AS
SELECT i, i // $trials AS search, i % $trials AS number,
    md5('base' || (search % 8)) || md5('root' || (search % 8)) AS root,
    'trial-' || i AS trial_id, md5(i::VARCHAR)[:16] AS adapter_id,
    [4, 8, 16, 32, 64][1 + (hash(i, 'r') % 5)::BIGINT]::INTEGER AS r,
    CASE WHEN i % 50 = 0 THEN NULL ELSE 1 + (hash(i, 'loss') % 20000)::BIGINT / 10000 END AS eval_loss,
    10.0 ** -(3 + (hash(i, 'lr') % 1000)::BIGINT / 1000) AS learning_rate,
    to_timestamp(1767225600 + 10 * i) AS created_at
FROM range($adapters) t(i);
INSERT INTO store.bases BY NAME
SELECT DISTINCT root AS content_root, 'org/base-' || (search % 8) || '@0123' AS identity, 'structure' AS structure,
    272 AS tensors, 134515008 AS parameters, 269030016 AS bytes, 'bfloat16' AS dtype, '{}'::JSON AS config,
    TIMESTAMPTZ '2026-01-01 00:00:00+00' AS created_at
FROM made;
INSERT INTO store.searches BY NAME
SELECT 'search-' || search AS search_id, 'sweep-' || search AS name, 'completed' AS status, '' AS message,
    root AS base_content_root, '{"path":"train.jsonl"}'::JSON AS dataset, '{}'::JSON AS config,
    'eval_loss' AS metric, 'min' AS mode, count(*)::INTEGER AS num_samples, 0 AS seed, min(created_at) AS created_at
FROM made GROUP BY search, root;
INSERT INTO store.trials BY NAME
SELECT trial_id, 'search-' || search AS search_id, number, 'completed' AS status,
    json_object('r', r, 'learning_rate', learning_rate) AS params, '' AS message, 1 AS attempts, 'lane-0' AS lane,
    eval_loss, 100 AS steps, created_at
FROM made;
INSERT INTO store.step_metrics BY NAME
SELECT trial_id, 25 * (1 + step) AS step, eval_loss + 1 / (1 + step) AS eval_loss FROM made, range(4) s(step);
INSERT INTO store.adapters BY NAME
SELECT i AS sequence, adapter_id, 'sweep-' || search || '-' || number AS name,
    CASE i % 4 WHEN 0 THEN 'discarded' ELSE 'available' END AS status, trial_id,
    'search-' || search AS search_id, 'sweep-' || search AS search_name, number AS trial_number,
    root AS base_content_root, 'org/base-' || (search % 8) || '@0123' AS base_identity, r,
    2.0 * r AS lora_alpha, false AS use_rslora, 0.0 AS lora_dropout, learning_rate, 'all-linear' AS target_modules,
    i % 7 AS seed, eval_loss, eval_loss - 0.1 AS train_loss, 100 AS steps, 102400 AS train_tokens,
    2000000000 AS peak_memory_bytes, 60.0 AS wall_s, created_at, sha256(i::VARCHAR) AS artifact_sha256,
    json_object('r', r, 'learning_rate', learning_rate) AS params,
    CASE WHEN number = 0 AND search % 10 = 0 THEN ['best'] ELSE [] END AS aliases
FROM made;
INSERT INTO store.aliases
SELECT 'sweep-' || search || '-0', 'best', adapter_id, created_at FROM made WHERE number = 0 AND search % 10 = 0;
"""


def fill(path: Path, adapters: int, trials: int = 16) -> Registry:
    """Make a registry with that many adapters, of as many trials, so many of which make a search."""
    registry = Registry.open(path, create=True)
    with attached(path, write=True, timeout_s=60) as connection:
        connection.execute("SET preserve_insertion_order = false")
        first, rest = FILL.split(";", 1)
        connection.execute(first, {"adapters": adapters, "trials": trials})
        connection.execute(rest)
        connection.execute("CHECKPOINT db")
    return registry


def one_base(registry: Reader) -> str:
    """The filter of the benchmark: one base of eight, three ranks of five."""
    root = min(base.content_root for base in registry.bases())
    return f"base_content_root = '{root}' and r <= 16"


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Milliseconds of some calls, after one that does not count."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - began))
    return {name: round(of(taken), 2) for name, of in (("median", statistics.median), ("min", min), ("max", max))}


def measure(folder: Path, adapters: int, repeats: int) -> dict[str, Any]:
    """Fill a registry and time what is asked of it."""
    began = time.perf_counter()
    registry = fill(folder / f"registry-{adapters}.duckdb", adapters)
    found: dict[str, Any] = {"fill_s": round(time.perf_counter() - began, 1)}
    found["file_mb"] = round(registry.path.stat().st_size / 1e6, 1)
    where = one_base(registry)
    columns = "adapter_id, name, status, eval_loss, steps, r, lora_alpha, learning_rate, target_modules"
    query = f"select {columns} from adapters where {where} order by eval_loss, created_at desc, adapter_id limit 20"
    with registry.held() as held:
        found["top_20_held_open"] = timed(lambda: held.adapters(where, "eval_loss", 20), repeats)
    found["top_20"] = timed(lambda: registry.adapters(where, "eval_loss", 20), repeats)
    found["top_20_in_sql"] = timed(lambda: registry.sql(query), repeats)
    found["newest_50"] = timed(lambda: registry.adapters(limit=50), repeats)
    found["best_of_each_r"] = timed(lambda: registry.sql("select r, min(eval_loss) from adapters group by r"), repeats)
    (newest,) = registry.adapters(limit=1)
    found["one_by_id"] = timed(lambda: registry.adapter(newest.adapter_id), repeats)
    found["one_search_with_trials"] = timed(lambda: registry.trials("search-0"), repeats)
    started = timed(lambda: _run("adapters", "list", "--help"), max(3, repeats // 5))
    options = ("--registry", str(registry.path), "--limit", "20")
    listed = timed(lambda: _run("adapters", "list", *options), max(3, repeats // 5))
    found["command_line"] = {"adapters list": listed, "adapters list --help": started}
    found["command_line"]["beyond start-up"] = round(listed["median"] - started["median"], 2)
    return found


def _run(*arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([*COMMAND, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args(arguments)
    document: dict[str, Any] = {"duckdb": duckdb.__version__, "python": platform.python_version(), "unit": "ms"}
    with tempfile.TemporaryDirectory() as folder:
        for adapters in sorted({1000, chosen.adapters}):
            document[f"{adapters} adapters"] = measure(Path(folder), adapters, chosen.repeats)
    text = json.dumps(document, indent=2)
    if chosen.output:
        chosen.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
