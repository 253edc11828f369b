"""A search hears of the end of what it waits for, also where nobody is left to tell it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rankloom.cluster import driver
from rankloom.cluster.broker import Broker
from rankloom.cluster.following import Follower
from rankloom.cluster.job import STOP, Job
from rankloom.cluster.proposing import Room
from rankloom.cluster.steering import Steering
from rankloom.config import parse_config
from rankloom.errors import SearchError
from rankloom.runs import Run

WAIT_S = 120.0  # for what takes a second on a machine with nothing else to do


@pytest.fixture(scope="module", autouse=True)
def on_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with driver.connected(verbose=False):
            yield


@pytest.fixture
def broker() -> Iterator[Any]:
    made: Any = ray.remote(num_cpus=0)(Broker).remote(["lane-0"])
    yield made
    ray.kill(made)


@pytest.fixture
def steering(tmp_path: Path, broker: Any) -> Steering:
    config = parse_config({"model_name_or_path": "base", "dataset": "rows.jsonl"})
    run = Run(folder=tmp_path, search_id="s", name="one", config={}, base_path="/base", base_content_root="c" * 64)
    job = Job(run=run, config=config, training=config.training, space={}, resolve=dict, points=[], largest={})
    return Steering(job, broker, Room(1), lambda events: None)


@ray.remote(num_cpus=0, max_retries=0)
def killed() -> None:
    os._exit(1)


@ray.remote(num_cpus=0, max_retries=0)
def failed() -> None:
    raise ValueError("no such folder")


@pytest.mark.parametrize(("task", "message"), [(killed, "WorkerCrashedError"), (failed, "ValueError")])
def test_a_search_whose_last_lane_died_without_a_word_does_not_wait_for_it(
    broker: Any, steering: Steering, task: Any, message: str
) -> None:
    follower = Follower(broker, {task.remote(): "lane-0"}, lambda events: None, lambda *seen: None, steering)
    follower.start()
    try:
        assert ray.get(broker.planned.remote(), timeout=WAIT_S) == 0
        ((lane,), _) = ray.get(broker.state.remote())
        assert lane.state == "failed" and message in lane.message
    finally:
        follower.finish()
    assert follower.error is None and not STOP.is_set()


def test_a_search_with_a_trial_that_does_not_end_is_not_completed(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "DRAIN_S", 0.0)
    ray.get(broker.submit.remote("a", 0, {"r": 8}))
    driver.drain(broker)  # nobody has it
    ray.get(broker.submit.remote("a", 0, {"r": 8}))
    assert ray.get(broker.orders.remote("lane-0", 1, 0.0)).trials
    with pytest.raises(SearchError, match="did not end within 0 s of the word to stop; go on with it by --resume"):
        driver.drain(broker)
