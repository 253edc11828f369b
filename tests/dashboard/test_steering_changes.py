"""What a visitor asks of a running search is asked on their behalf, and only by who may."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rankloom.config import parse_config
from rankloom.errors import SearchError
from rankloom.mailbox import Mailbox, Request
from rankloom.runs import Run, plain_config
from rankloom_dashboard import access, changes
from rankloom_dashboard.errors import ForbiddenError
from rankloom_dashboard.launch import REGISTRY_VARIABLE
from rankloom_registry import Registry, SearchResumed

ASKS: list[Callable[[], None]] = [
    lambda: changes.stop_trial("lora-tiny", 3, why="it learns nothing"),
    lambda: changes.stop_search("lora-tiny", why="lunch"),
    lambda: changes.add_trials("lora-tiny", 2),
]


@pytest.fixture
def run(made: object, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run of a search that was resumed."""
    path: Path = made.path  # type: ignore[attr-defined]
    monkeypatch.setenv(REGISTRY_VARIABLE, str(path))
    registry = Registry.open(path)
    search = registry.search("lora-tiny")
    registry.record(SearchResumed(search_id=search.search_id))
    config = parse_config({"model_name_or_path": "base", "dataset": "rows.jsonl", "name": search.name})
    run = Run(
        folder=path.with_suffix(".runs") / search.name,
        search_id=search.search_id,
        name=search.name,
        config=plain_config(config),
        base_path="/base",
        base_content_root=search.base_content_root,
    )
    run.folder.mkdir(parents=True)
    run.save(config)
    return run


@pytest.fixture
def heard(run: Run) -> Iterator[list[Request]]:
    """What its driver is asked."""
    requests: list[Request] = []
    over, ready = threading.Event(), threading.Event()

    def drive() -> None:
        with run.alone():
            ready.set()
            while not over.wait(0.01):
                for request in Mailbox(run.requests).take():
                    requests.append(request)
                    Mailbox(run.requests).answer(request, num_samples=10)

    thread = threading.Thread(target=drive)
    thread.start()
    assert ready.wait(10)
    yield requests
    over.set()
    thread.join()


def visited_by(monkeypatch: pytest.MonkeyPatch, who: str, role: access.Role) -> None:
    monkeypatch.setattr(access, "visitor", lambda: access.Visitor(who=who, role=role))


def test_an_editor_steers_a_search_in_their_own_name(heard: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    visited_by(monkeypatch, "ada@example.org", "editor")
    for ask in ASKS:
        ask()
    assert [(asked.kind, asked.who, asked.why, asked.trial, asked.count) for asked in heard] == [
        ("stop_trial", "ada@example.org", "it learns nothing", 3, None),
        ("stop_search", "ada@example.org", "lunch", None, None),
        ("add_trials", "ada@example.org", "", None, 2),
    ]


@pytest.mark.parametrize("ask", ASKS, ids=["stop_trial", "stop_search", "add_trials"])
def test_a_viewer_steers_nothing(
    heard: list[Request], monkeypatch: pytest.MonkeyPatch, ask: Callable[[], None]
) -> None:
    visited_by(monkeypatch, "eve@example.org", "viewer")
    with pytest.raises(ForbiddenError):
        ask()
    assert heard == []


@pytest.mark.parametrize("ask", ASKS, ids=["stop_trial", "stop_search", "add_trials"])
def test_a_search_that_does_not_run_says_so(run: Run, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], None]) -> None:
    visited_by(monkeypatch, "ada@example.org", "editor")
    with pytest.raises(SearchError, match="'lora-tiny' does not run now"):
        ask()
