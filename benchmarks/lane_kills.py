"""Whether searches keep what their lane has reported, when its process is killed with SIGKILL at random moments.

    python benchmarks/lane_kills.py [--times 40] [--seed 0] [--output run.json]

Searches of 8 trials, two slots, on a random Llama of two layers: in each of them the process that trains is killed
twice, at most two seconds after it had something to report. Then every report that the search was told of, and every
one in the lane's log, is looked for in the registry, and every kept adapter is hashed again. One JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _world import write_random_llama, write_text_rows

from rankloom import Search
from rankloom.cluster.driver import connected
from rankloom.cluster.lane import read_event_logs
from rankloom.config import SearchConfig, TrainingConfig
from rankloom.result import SearchResult
from rankloom_registry import Event, Registry, TrialReported

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
SETTINGS: dict[str, Any] = {
    "space": "lora-small",
    "num_samples": 8,
    "slots_per_lane": 2,
    "keep_top": 2,
    "scheduler": None,
    "training": {"max_steps": 60, "eval_steps": 2, "max_length": 64},
}
KILLS_A_SEARCH = 2  # a trial that is in hand a third time is given up, as it should be


class Assassin:
    """A watcher of a search that kills its lane, and remembers what it was told."""

    def __init__(self, kills: int, chance: random.Random) -> None:
        self.told: set[tuple[str, int]] = set()
        self.killed: list[int] = []
        self._kills = kills
        self._chance = chance
        self._timer: threading.Timer | None = None

    def say(self, message: str) -> None:
        pass

    def begin(self, name: str, config: SearchConfig, training: TrainingConfig) -> None:
        pass

    def update(self, events: Sequence[Event], lanes: Sequence[Any], progress: Sequence[Any]) -> None:
        reports = steps(events)
        self.told |= reports
        waiting = self._timer is not None and self._timer.is_alive()
        if not reports or waiting or len(self.killed) == self._kills:
            return
        (pid,) = (lane.pid for lane in lanes)
        if pid not in self.killed:
            self._timer = threading.Timer(self._chance.uniform(0, 2), self._kill, [pid])
            self._timer.start()

    def _kill(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # the search was done sooner
            return
        self.killed.append(pid)


def steps(events: Sequence[Event]) -> set[tuple[str, int]]:
    """The steps that were reported, each with its trial."""
    return {(event.trial_id, event.step) for event in events if isinstance(event, TrialReported)}


def look(result: SearchResult, told: set[tuple[str, int]]) -> dict[str, int]:
    """What a search was told and what its registry holds."""
    registry = Registry.open(result.registry)
    promised = told | steps(read_event_logs(result.run_folder))
    kept = [(trial.trial_id, s.step) for trial in result.trials for s in registry.step_metrics(trial.trial_id)]
    adapters = registry.adapters("status = 'available'")
    for adapter in adapters:
        registry.verify(adapter)
    root = Path(registry.artifacts.root)
    known = {path for adapter in adapters for path in registry.artifacts.path(adapter.artifact_sha256).iterdir()}
    return {
        "acknowledged": len(promised),
        "lost": len(promised - set(kept)),
        "kept_twice": len(kept) - len(set(kept)),
        "trials_not_completed": sum(trial.status != "completed" for trial in result.trials),
        "adapters_verified": len(adapters),
        "files_of_no_adapter": len({path for path in root.rglob("*") if path.is_file()} - known),
        "died_in_a_trial": sum(trial.attempts > 1 for trial in registry.trials(result.search_id)),
    }


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Kill that many times and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    document: dict[str, Any] = {"searches": 0, "kills": 0}
    with tempfile.TemporaryDirectory(prefix="lane-kills-") as name, connected(verbose=False):
        folder = Path(name)
        write_random_llama(folder / "base", SHAPE)
        write_text_rows(folder / "rows.jsonl", 64)
        while document["kills"] < options.times:
            number = document["searches"]
            watch = Assassin(min(KILLS_A_SEARCH, options.times - document["kills"]), chance)
            registry = folder / f"registry-{number}.duckdb"
            search = Search(
                str(folder / "base"), str(folder / "rows.jsonl"), registry=registry, seed=number, **SETTINGS
            )
            found = look(search.run(watch), watch.told) | {"searches": 1, "kills": len(watch.killed)}
            document = {key: document.get(key, 0) + value for key, value in found.items()}
            print(json.dumps(document), file=sys.stderr, flush=True)
    text = json.dumps(document)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return document


if __name__ == "__main__":
    found = main(sys.argv[1:])
    sys.exit(1 if found["lost"] or found["kept_twice"] or found["files_of_no_adapter"] else 0)
