"""A search is found from its registry, told what to do, and known to be dead when it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from rankloom import control
from rankloom.errors import SearchError
from rankloom.mailbox import Request
from rankloom.runs import Run
from rankloom_registry import (
    BaseFingerprint,
    BaseSeen,
    Registry,
    SearchEnded,
    SearchNotFoundError,
    SearchStarted,
    acting_for,
)

Begin = Callable[..., Run]
Driven = Callable[..., AbstractContextManager[list[Request]]]


@pytest.fixture
def registry(tmp_path: Path, fingerprint: BaseFingerprint) -> Registry:
    made = Registry.open(tmp_path / "registry.duckdb", create=True)
    made.record(BaseSeen(base=fingerprint))
    return made


@pytest.fixture
def begin(registry: Registry, fingerprint: BaseFingerprint, make_run: Callable[..., Run]) -> Begin:
    """Begins a search, as a driver that is killed leaves it."""

    def begin(search_id: str = "s1", *, storage: Path | None = None, folder: Path | None = None) -> Run:
        run = make_run(
            folder or (storage or registry.path.with_suffix(".runs")) / "one",
            search_id=search_id,
            base_content_root=fingerprint.content_root,
            name="one",
            storage_path=storage,
        )
        registry.record(
            SearchStarted(
                search_id=search_id,
                name="one",
                base_content_root=run.base_content_root,
                dataset={},
                config=run.config,
                metric="eval_loss",
                mode="min",
                num_samples=16,
                seed=0,
            )
        )
        return run

    return begin


def test_what_is_asked_reaches_the_driver_with_who_and_why(registry: Registry, begin: Begin, driven: Driven) -> None:
    with driven(begin(), lambda request: {"num_samples": 18}) as heard, acting_for("ann@example.org"):
        control.stop_trial(registry, "one", 3, why="it learns nothing")
        control.stop_search(registry, "s1", why="lunch")
        assert control.add_trials(registry, "one", 2) == 18
    assert [(asked.kind, asked.who, asked.why, asked.trial, asked.count) for asked in heard] == [
        ("stop_trial", "ann@example.org", "it learns nothing", 3, None),
        ("stop_search", "ann@example.org", "lunch", None, None),
        ("add_trials", "ann@example.org", "", None, 2),
    ]


@pytest.mark.parametrize(
    "ask",
    [
        lambda registry, search: control.stop_trial(registry, search, 0),
        lambda registry, search: control.stop_search(registry, search),
        lambda registry, search: control.add_trials(registry, search, 1),
    ],
)
def test_a_search_that_does_not_run_is_told_nothing(registry: Registry, begin: Begin, ask: Callable[..., Any]) -> None:
    with pytest.raises(SearchNotFoundError):
        ask(registry, "one")
    run = begin()
    with pytest.raises(SearchError, match="'one' does not run now; go on with it by --resume"):
        ask(registry, "one")
    assert not run.requests.exists()
    shutil.rmtree(run.folder)
    with pytest.raises(SearchError, match="is not on this machine; ask where the search was started"):
        ask(registry, "one")
    registry.record(SearchEnded(search_id="s1", status="failed"))
    with pytest.raises(SearchError, match="'one' does not run now: it is failed"):
        ask(registry, "one")


def test_nonsense_is_refused_before_anybody_is_asked(registry: Registry, begin: Begin, driven: Driven) -> None:
    with driven(begin()) as heard:
        with pytest.raises(SearchError, match="stop_trial needs a trial of 0 or more; got -1"):
            control.stop_trial(registry, "one", -1)
        with pytest.raises(SearchError, match="add_trials needs a count of 1 or more; got 0"):
            control.add_trials(registry, "one", 0)
    assert heard == []


def test_a_run_folder_is_found_where_the_search_was_told_to_put_it(
    registry: Registry, begin: Begin, tmp_path: Path
) -> None:
    run = begin(storage=tmp_path / "elsewhere")
    assert control.run_of(registry, registry.search("one")) == run


def test_a_run_folder_moves_with_its_registry(begin: Begin, tmp_path: Path) -> None:
    begin()
    for name in ("registry.duckdb", "registry.runs"):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "new" / name)
    moved = Registry.open(tmp_path / "new" / "registry.duckdb")
    assert control.run_of(moved, moved.search("one")).folder == tmp_path / "new" / "registry.runs" / "one"


def test_a_folder_of_the_same_name_is_not_taken_for_it(registry: Registry, begin: Begin, tmp_path: Path) -> None:
    begin()
    begin("s2", folder=tmp_path / "backup" / "one")
    with pytest.raises(SearchError, match="the run folder of the search 'one' is not on this machine"):
        control.run_of(registry, registry.search("s2"))


def test_the_status_of_a_search_whose_driver_was_killed(registry: Registry, begin: Begin, tmp_path: Path) -> None:
    def status() -> str:
        return control.status_now(registry, registry.search("s1"))

    run = begin()
    assert (registry.search("s1").status, status()) == ("running", "interrupted")
    with run.alone():
        assert status() == "running"
    assert status() == "interrupted"
    run.folder.rename(tmp_path / "elsewhere")  # as seen from another machine
    assert status() == "running"
    (tmp_path / "elsewhere").rename(run.folder)
    registry.record(SearchEnded(search_id="s1", status="failed"))
    with run.alone():
        assert status() == "failed"
