"""What a visitor asks of a running search is asked on their behalf, and only by who may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from rankloom.errors import SearchError
from rankloom.mailbox import Request
from rankloom.runs import Run
from rankloom_dashboard import access, changes
from rankloom_dashboard.errors import ForbiddenError
from rankloom_dashboard.launch import REGISTRY_VARIABLE

ASKS: list[Callable[[], None]] = [
    lambda: changes.stop_trial("lora-tiny", 3, why="it learns nothing"),
    lambda: changes.stop_search("lora-tiny", why="lunch"),
    lambda: changes.add_trials("lora-tiny", 2),
]


@pytest.fixture(autouse=True)
def _shown(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(made.path))


@pytest.fixture
def heard(resumed: Run, driven: Callable[..., AbstractContextManager[list[Request]]]) -> Iterator[list[Request]]:
    """What the driver of a search is asked."""
    with driven(resumed) as asked:
        yield asked


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
def test_a_search_that_does_not_run_says_so(
    resumed: Run, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], None]
) -> None:
    visited_by(monkeypatch, "ada@example.org", "editor")
    with pytest.raises(SearchError, match="'lora-tiny' does not run now"):
        ask()
