"""`rankloom searches stop` and `extend`, against a driver that is there and says yes or no."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from rankloom.cluster.job import StoppedOnRequest
from rankloom.mailbox import Request
from rankloom.runs import Run
from rankloom.search import Search
from rankloom.watch import Watcher
from rankloom_registry import Registry, SearchResumed

Rankloom = Callable[..., Any]


@pytest.fixture
def resumed(world: Any, make_run: Callable[..., Run]) -> Run:
    """The run of the world's search, which was resumed."""
    registry = Registry.open(world.registry)
    registry.record(SearchResumed(search_id="search-1"))
    search = registry.search("search-1")
    return make_run(
        world.registry.with_suffix(".runs") / search.name,
        search_id=search.search_id,
        base_path=str(world.base),
        base_content_root=search.base_content_root,
        **search.config,
    )


@pytest.fixture
def heard(resumed: Run, driven: Callable[..., AbstractContextManager[list[Request]]]) -> Iterator[list[Request]]:
    """What the driver of that run is asked; it refuses to stop trial 7."""

    def answer(request: Request) -> dict[str, Any]:
        refusal = "trial 7 is not in training" if request.trial == 7 else ""
        return {"refusal": refusal, "num_samples": 2 + (request.count or 0)}

    with driven(resumed, answer) as asked:
        yield asked


def test_a_trial_and_a_search_are_stopped(rankloom: Rankloom, world: Any, heard: list[Request]) -> None:
    flags = ("--registry", world.registry)
    done = rankloom("searches", "stop", "negation", "--trial", 1, "--reason", "it learns nothing", *flags)
    assert (done.code, done.err) == (0, "")
    assert done.out == "trial 1 of negation is being stopped; its adapter is kept as it is now\n"
    assert rankloom("searches", "stop", "search-1", "--trial", 0, "--json", *flags).json == {
        "search_id": "search-1",
        "name": "negation",
        "trial": 0,
    }
    done = rankloom("searches", "stop", "negation", *flags)
    assert (done.code, done.err) == (0, "") and "negation is being interrupted" in done.out
    refused = rankloom("searches", "stop", "negation", "--trial", 7, "--json", *flags)
    assert (refused.code, refused.out, refused.err) == (1, "", "error: trial 7 is not in training\n")
    assert [(asked.kind, asked.trial, asked.why) for asked in heard] == [
        ("stop_trial", 1, "it learns nothing"),
        ("stop_trial", 0, ""),
        ("stop_search", None, ""),
        ("stop_trial", 7, ""),
    ]


def test_trials_are_added(rankloom: Rankloom, world: Any, heard: list[Request]) -> None:
    flags = ("--registry", world.registry)
    done = rankloom("searches", "extend", "negation", "--by", 3, "--reason", "there is time", *flags)
    assert (done.code, done.out, done.err) == (0, "negation has 5 trials from now on\n", "")
    found = rankloom("searches", "extend", "negation", "--by", 1, "--json", *flags).json
    assert found == {"search_id": "search-1", "name": "negation", "num_samples": 3}
    assert [(asked.kind, asked.count, asked.why) for asked in heard] == [
        ("add_trials", 3, "there is time"),
        ("add_trials", 1, ""),
    ]


def test_a_search_whose_driver_is_gone_is_shown_as_interrupted(rankloom: Rankloom, world: Any, resumed: Run) -> None:
    flags = ("--registry", world.registry)
    assert Registry.open(world.registry).search("negation").status == "running"
    assert rankloom("searches", "list", "--json", *flags).json[0]["status"] == "interrupted"
    assert rankloom("searches", "show", "negation", "--json", *flags).json["search"]["status"] == "interrupted"
    shown = rankloom("searches", "show", "negation", *flags)
    assert "interrupted" in shown.out and "2/2" in shown.out


def test_a_search_with_a_driver_is_shown_as_running(rankloom: Rankloom, world: Any, heard: list[Request]) -> None:
    flags = ("--registry", world.registry)
    assert rankloom("searches", "list", "--json", *flags).json[0]["status"] == "running"


def test_a_search_that_somebody_stopped_says_who_and_how_to_go_on(
    rankloom: Rankloom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(search: Search, watch: Watcher, *, verbose: bool) -> None:
        watch.begin("negation", search.config, search.config.training)
        raise StoppedOnRequest(Request(kind="stop_search", who="ann", why="lunch [1]"))

    monkeypatch.setattr(Search, "run", run)
    (tmp_path / "search.yaml").write_text("{model_name_or_path: base, dataset: rows.jsonl}")
    done = rankloom("search", "search.yaml")
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-3:] == [
        "stopped by ann: lunch [1]",
        "finished trials are in the registry; go on with the same command and --resume",
        "interrupted",
    ]
