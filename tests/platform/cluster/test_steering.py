"""A real search is told what to do by another process: the command line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.schedulers import PopulationBasedTraining

from rankloom import Search, control
from rankloom.cluster.broker import Broker
from rankloom.cluster.job import STOP, Job
from rankloom.cluster.proposing import Room
from rankloom.cluster.steering import Steering
from rankloom.config import SearchConfig, TrainingConfig
from rankloom.errors import SearchError
from rankloom.mailbox import Mailbox, Request
from rankloom.runs import Run, open_run
from rankloom_registry import Event, Registry, SearchExtended, TrialReported

LONG = 100_000  # steps: more than anybody waits for


@pytest.fixture(scope="module", autouse=True)
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from rankloom.cluster.driver import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        with connected(verbose=False):
            yield


class Onlooker:
    """Watches a search, and once each thing has happened asks something of it from another process.

    It asks the next only when the one before was answered: each answer is then to what was the case.

    Args:
        registry: The search's registry.
        asks: What has to have happened, and the arguments of `rankloom searches` for then, in order.
    """

    def __init__(self, registry: Path, *asks: tuple[Callable[[Event], bool], tuple[str, ...]]) -> None:
        self._registry = registry
        self._asks = list(asks)
        self._seen: list[Event] = []
        self.asked: list[subprocess.Popen[str]] = []

    def say(self, message: str) -> None:
        pass

    def begin(self, name: str, config: SearchConfig, training: TrainingConfig) -> None:
        self.num_samples = config.num_samples

    def update(self, events: Sequence[Event], lanes: Sequence[Any], progress: Sequence[Any]) -> None:
        self._seen += events
        while self._asks and self._seen and (not self.asked or self.asked[-1].poll() is not None):
            if self._asks[0][0](self._seen.pop(0)):
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
    run.extend(5)  # as a driver leaves it that is killed before it tells the registry
    again = Onlooker(path, (reported(1), ("stop", "--trial", "1")))
    result = Search.resume("steered", registry=path).run(again)
    assert again.num_samples == registry.search("steered").num_samples == 5
    assert again.answers == [ids | {"trial": 1}]
    assert [trial.status for trial in result.trials] == ["stopped", "stopped", *["completed"] * 3]
    assert [trial.metrics["steps"] for trial in result.trials[2:]] == [8, 8, 8]
    assert all(trial.adapter_id for trial in result.trials)
    spans = registry.trial_spans("steered")
    assert [(span.number, span.attempt, span.lane, span.slot, span.status) for span in spans] == [
        (0, 1, "lane-0", 0, "stopped"),
        (1, 1, "lane-0", 0, "interrupted"),
        (1, 2, "lane-0", 0, "stopped"),
        (2, 1, "lane-0", 0, "completed"),
        (3, 1, "lane-0", 0, "completed"),
        (4, 1, "lane-0", 0, "completed"),
    ]
    assert all(one.ended_at is not None and one.ended_at <= other.started_at for one, other in pairwise(spans))
    with pytest.raises(SearchError, match="'steered' does not run now"):
        control.add_trials(registry, "steered", 1)


@pytest.fixture
def steering(tmp_path: Path, make_run: Callable[..., Run]) -> Iterator[Callable[..., Steering]]:
    """Makes what steers a search that has nothing in training, and records nothing."""
    STOP.clear()  # as at the start of every search

    def make(room: Room, **settings: Any) -> Steering:
        run = make_run(tmp_path, **settings)
        config = run.search_config()
        Mailbox(run.requests).open()
        job: Any = Job(
            run=run,
            config=config,
            training=config.training,
            space={},
            resolve=dict,
            points=[],
            largest={},
        )
        broker = ray.remote(num_cpus=0)(Broker).remote(["lane-0"])
        return Steering(job, broker, room, lambda events: None)

    yield make
    STOP.clear()


def answered(steering: Steering, folder: Path, **asked: Any) -> Any:
    """What somebody is told who asks that."""
    mailbox, request = Mailbox(folder / "requests"), Request(who="ann", **asked)
    mailbox.post(request)
    steering.obey()
    return mailbox.answer_to(request)


def test_a_population_is_not_extended(steering: Callable[..., Steering], tmp_path: Path) -> None:
    population = PopulationBasedTraining(hyperparam_mutations={"learning_rate": [1e-4, 1e-3]}, time_attr="steps")
    answer = answered(steering(Room(4), scheduler=population), tmp_path, kind="add_trials", count=1)
    assert "population-based training works on the population that it began with" in answer["refusal"]


def test_no_search_becomes_larger_than_one_may_be(steering: Callable[..., Steering], tmp_path: Path) -> None:
    room = Room(99_990)
    steers = steering(room)
    answer = answered(steers, tmp_path, kind="add_trials", count=11)
    assert "a search has at most 100000 trials, this one has 99990: add fewer than 11" in answer["refusal"]
    assert answered(steers, tmp_path, kind="add_trials", count=10) == {"refusal": "", "num_samples": 100_000}
    assert open_run(tmp_path, tmp_path).search_config().num_samples == 100_000


def test_what_cannot_be_written_down_is_not_added(
    steering: Callable[..., Steering], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Run, num_samples: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    room = Room(4)
    steers = steering(room)
    monkeypatch.setattr(Run, "extend", full)
    answer = answered(steers, tmp_path, kind="add_trials", count=1)
    assert "No space left on device" in answer["refusal"] and room.total == 4


def test_a_trial_that_is_not_there_is_not_stopped(steering: Callable[..., Steering], tmp_path: Path) -> None:
    answer = answered(steering(Room(4)), tmp_path, kind="stop_trial", trial=7)
    assert "trial 7 is not in training" in answer["refusal"]


def test_a_search_that_is_being_stopped_takes_no_more(steering: Callable[..., Steering], tmp_path: Path) -> None:
    steers = steering(Room(4))
    assert answered(steers, tmp_path, kind="stop_search", why="lunch")["refusal"] == ""
    assert STOP.is_set() and steers.stopped is not None and steers.stopped.why == "lunch"
    assert "the search is being stopped" in answered(steers, tmp_path, kind="add_trials", count=1)["refusal"]
    assert "the search is ending" in answered(steers, tmp_path, kind="stop_trial", trial=0)["refusal"]
