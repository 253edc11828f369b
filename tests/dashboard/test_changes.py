"""What the dashboard can change: nothing without leave, and never without a name in the record."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from rankloom_dashboard import ForbiddenError, access, changes
from rankloom_dashboard.access import ROLES, Visitor
from rankloom_dashboard.errors import BusyError
from rankloom_dashboard.jobs import job as jobs
from rankloom_dashboard.jobs.job import board
from rankloom_dashboard.launch import CHANGES_VARIABLE, REGISTRY_VARIABLE
from rankloom_registry import Registry

NEEDED = {"annotate": "editor", "discard": "editor"}  # all others here need a promoter
REAL: dict[str, Callable[[Any], dict[str, Any]]] = {
    "annotate": lambda made: {"ref": made.best, "name": "better", "add": ("keep",)},
    "move_alias": lambda made: {"ref": made.second, "alias": "champion", "why": "it is better"},
    "remove_alias": lambda made: {"ref": made.best, "alias": "champion", "why": "retired"},
    "discard": lambda made: {"refs": (made.second,), "reason": "not needed"},
    "undo_promotion": lambda made: {"ref": made.best, "why": "it was wrong"},
}


@pytest.fixture
def here(made, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(made.path))
    monkeypatch.setenv(CHANGES_VARIABLE, "1")
    return made


def state(folder: Path) -> dict[str, str]:
    """Every file of a folder, but the empty one by which programs wait for their turn."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def arguments(change: Callable[..., object], made: Any) -> dict[str, Any]:
    """Something to call a change with; which, matters only if it is let."""
    known = {"str": made.best, "int": 1, "float": 1.0, "bool": True, "tuple[str, ...]": (made.best,)}
    found = {}
    for name, parameter in inspect.signature(change).parameters.items():
        if parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            kind = str(parameter.annotation)
            assert kind in known, f"no sample of {kind} to try {change.__name__} with: add one here"
            found[name] = known[kind]
    return found


@pytest.mark.parametrize("name", sorted(changes.CHANGES))
def test_nothing_is_changed_unless_the_start_allowed_it(here, monkeypatch, name: str) -> None:
    monkeypatch.setenv(CHANGES_VARIABLE, "0")
    before = state(here.path.parent)
    with pytest.raises(ForbiddenError, match="--allow-changes"):
        changes.CHANGES[name](**arguments(changes.CHANGES[name], here))
    assert state(here.path.parent) == before


@pytest.mark.parametrize("name", sorted(changes.CHANGES))
def test_who_may_only_look_changes_nothing(here, monkeypatch, name: str) -> None:
    monkeypatch.setattr(access, "visitor", lambda: Visitor(who="eve@example.org", role="viewer"))
    before = state(here.path.parent)
    with pytest.raises(ForbiddenError, match=r"eve@example\.org has viewer"):
        changes.CHANGES[name](**arguments(changes.CHANGES[name], here))
    assert state(here.path.parent) == before


@pytest.mark.parametrize("name", sorted(changes.CHANGES))
def test_who_did_not_log_in_changes_nothing(here, monkeypatch, name: str) -> None:
    monkeypatch.setattr(access, "visitor", lambda: None)
    before = state(here.path.parent)
    with pytest.raises(ForbiddenError, match="nobody who is logged in"):
        changes.CHANGES[name](**arguments(changes.CHANGES[name], here))
    assert state(here.path.parent) == before


@pytest.mark.parametrize("name", sorted(REAL))
def test_each_role_changes_what_it_may_and_is_named(here, monkeypatch, name: str) -> None:
    needed = ROLES.index(NEEDED.get(name, "promoter"))
    monkeypatch.setattr(access, "visitor", lambda: Visitor(who="ada@example.org", role=ROLES[needed - 1]))
    with pytest.raises(ForbiddenError, match=f"needs the role {ROLES[needed]}"):
        changes.CHANGES[name](**REAL[name](here))
    monkeypatch.setattr(access, "visitor", lambda: Visitor(who="ada@example.org", role=ROLES[needed]))
    with Registry.open(here.path) as registry:
        known = {event.event_id for event in registry.events()}
        changes.CHANGES[name](**REAL[name](here))
        fresh = [event for event in registry.events() if event.event_id not in known]
    assert fresh and {event.who for event in fresh} == {"ada@example.org"}


def test_of_several_who_start_an_evaluation_at_once_one_does(here, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "slow_worker.py").write_text("import sys; sys.stdin.read()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.setattr(jobs, "WORKER", "slow_worker")
    monkeypatch.setattr(access, "visitor", lambda: Visitor(who="ada@example.org", role="editor"))
    board.clear()  # type: ignore[attr-defined]
    together = Barrier(8)

    def start(_: int) -> bool:
        together.wait(30)
        try:
            changes.start_evaluation((here.best,))
        except BusyError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(start, range(8))) == [False] * 7 + [True]
    (job,) = board().all("evaluate")
    job.cancel()
    assert job.wait(60) == "cancelled"
