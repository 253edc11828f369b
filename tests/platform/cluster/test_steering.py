"""A real search is told what to do by another process: the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rankloom import Search
from rankloom.config import SearchConfig, TrainingConfig
from rankloom.errors import SearchError
from rankloom.runs import open_run
from rankloom_registry import Event, Registry, SearchExtended, TrialReported

LONG = 100_000  # steps: more than anybody waits for


@pytest.fixture(scope="module", autouse=True)
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from rankloom.cluster.driver import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        with connected(verbose=False):
            yield


class Onlooker:
    """Watches a search, and once each thing has happened asks something of it from another process.

    Args:
        registry: The search's registry.
        asks: What has to have happened, and the arguments of `rankloom searches` for then, in order.
    """

    def __init__(self, registry: Path, *asks: tuple[Callable[[Event], bool], tuple[str, ...]]) -> None:
        self._registry = registry
        self._asks = list(asks)
        self.asked: list[subprocess.Popen[str]] = []

    def say(self, message: str) -> None:
        pass

    def begin(self, name: str, config: SearchConfig, training: TrainingConfig) -> None:
        self.num_samples = config.num_samples

    def update(self, events: Sequence[Event], lanes: Sequence[Any], progress: Sequence[Any]) -> None:
        for event in events:
            if self._asks and self._asks[0][0](event):
                self.asked.append(self._ask(*self._asks.pop(0)[1]))

    def _ask(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        line = ["searches", command, "steered", *arguments, "--registry", str(self._registry), "--json"]
        program = [sys.executable, "-c", "from rankloom.cli import main; main()", *line]
        environment = os.environ | {"LOGNAME": "ann"}
        return subprocess.Popen(program, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    @property
    def answers(self) -> list[Any]:
        """What each of them was told: JSON, or else the message."""
        outputs = [asked.communicate(timeout=60) for asked in self.asked]
        return [json.loads(out) if out else err.strip() for out, err in outputs]


def reported(number: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, TrialReported) and event.trial_id.endswith(f"-{number}")


def extended(event: Event) -> bool:
    return isinstance(event, SearchExtended)


def space(trial: Any) -> dict[str, Any]:
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True)
    return {"learning_rate": rate, "r": 4, "max_steps": LONG if trial.number < 2 else 8}


def test_a_search_is_steered_from_another_process(tmp_path: Path, tiny_model: Path, rows_file: Path) -> None:
    path = tmp_path / "registry.duckdb"
    search = Search(
        str(tiny_model),
        str(rows_file),
        space=space,
        num_samples=2,
        registry=path,
        name="steered",
        scheduler=None,
        slots_per_lane=1,
        training={"max_steps": 8, "eval_steps": 4, "max_length": 48},
    )
    onlooker = Onlooker(
        path,
        (reported(0), ("stop", "--trial", "0", "--reason", "it learns nothing")),
        (reported(1), ("extend", "--by", "2", "--reason", "there is time")),
        (extended, ("stop", "--trial", "3")),
        (lambda event: True, ("stop", "--reason", "lunch")),
    )
    with pytest.raises(KeyboardInterrupt, match="stopped by ann: lunch"):
        search.run(onlooker)
    registry = Registry.open(path)
    found = registry.search("steered")
    ids = {"search_id": found.search_id, "name": "steered"}
    first, added, refused, last = onlooker.answers
    assert [first, added, last] == [ids | {"trial": 0}, ids | {"num_samples": 4}, ids | {"trial": None}]
    assert "trial 3 is not in training, so it cannot be stopped; of this search, these are: 1" in refused
    assert (found.status, found.message, found.num_samples) == ("interrupted", "stopped by ann: lunch", 4)
    ends = {event.kind: event for event in reversed(registry.events(found.search_id))}
    assert [(ends[kind].who, ends[kind].why) for kind in ("search_extended", "search_ended")] == [
        ("ann", "there is time"),
        ("ann", "lunch"),
    ]
    stopped, cut_short = registry.trials("steered")
    assert (stopped.status, stopped.message) == ("stopped", "stopped by ann: it learns nothing")
    assert (cut_short.status, cut_short.slot) == ("interrupted", 0)
    (end,) = (event for event in registry.events(stopped.trial_id) if event.kind == "trial_ended")
    assert (end.who, end.why) == ("ann", "it learns nothing")
    assert stopped.adapter_id is not None
    registry.verify(registry.adapter(stopped.adapter_id))

    run = open_run("steered", path.with_suffix(".runs"))
    assert not run.requests.exists() and not run.is_running()
    again = Onlooker(path, (reported(1), ("stop", "--trial", "1")))
    result = Search.resume("steered", registry=path).run(again)
    assert again.num_samples == 4
    assert again.answers == [ids | {"trial": 1}]
    assert [trial.status for trial in result.trials] == ["stopped", "stopped", "completed", "completed"]
    assert [trial.metrics["steps"] for trial in result.trials[2:]] == [8, 8]
    assert all(trial.adapter_id for trial in result.trials)
    spans = registry.trial_spans("steered")
    assert [(span.number, span.attempt, span.lane, span.slot, span.status) for span in spans] == [
        (0, 1, "lane-0", 0, "stopped"),
        (1, 1, "lane-0", 0, "interrupted"),
        (1, 2, "lane-0", 0, "stopped"),
        (2, 1, "lane-0", 0, "completed"),
        (3, 1, "lane-0", 0, "completed"),
    ]
    assert all(
        one.ended_at is not None and one.ended_at <= other.started_at
        for one, other in zip(spans, spans[1:], strict=False)
    )
    with pytest.raises(SearchError, match="'steered' does not run now"):
        from rankloom import control

        control.add_trials(registry, "steered", 1)
