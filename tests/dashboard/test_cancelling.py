"""Who stops a program that works for the dashboard: whoever started it, or a promoter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankloom_dashboard import ForbiddenError, access, changes
from rankloom_dashboard.access import Role, Visitor
from rankloom_dashboard.jobs import job as jobs
from rankloom_dashboard.jobs.job import Job, board
from rankloom_dashboard.launch import CHANGES_VARIABLE


@pytest.fixture
def lasting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that last until they are stopped."""
    (tmp_path / "slow_worker.py").write_text("import sys; sys.stdin.read()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.setattr(jobs, "WORKER", "slow_worker")
    monkeypatch.setenv(CHANGES_VARIABLE, "1")


@pytest.fixture
def adas(lasting: None) -> Iterator[Job]:
    """An evaluation that Ada has started."""
    job = board().start("evaluate", {}, "ada@example.org")
    yield job
    job.cancel()
    job.wait(60)


@pytest.mark.parametrize(
    ("who", "role", "stops"),
    [
        ("ada@example.org", "editor", True),
        ("bob@example.org", "editor", False),
        ("bob@example.org", "promoter", True),
        ("ada@example.org", "viewer", False),
    ],
)
def test_who_may_stop_it_is_offered_that_and_nobody_else(
    run_page, made, adas: Job, monkeypatch: pytest.MonkeyPatch, who: str, role: Role, stops: bool
) -> None:
    monkeypatch.setattr(access, "visitor", lambda: Visitor(who=who, role=role))
    app = run_page(made.path, "views/evaluate.py", job=adas.job_id)
    (button,) = (button for button in app.button if button.label == "Cancel")
    assert button.disabled is not stops
    if stops:
        button.click().run()
        assert not app.exception
        assert adas.wait(60) == "cancelled"
    else:
        with pytest.raises(ForbiddenError, match="needs the role"):
            changes.cancel_job(adas.job_id)


def test_a_role_that_is_gone_since_the_page_was_drawn_is_a_message(
    run_page, made, adas: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "visitor", lambda: Visitor(who="ada@example.org", role="editor"))
    app = run_page(made.path, "views/evaluate.py", job=adas.job_id)
    monkeypatch.setattr(access, "visitor", lambda: Visitor(who="ada@example.org", role="viewer"))
    next(button for button in app.button if button.label == "Cancel").click().run()
    assert not app.exception
    assert [error.value for error in app.error] == ["Nothing was changed."]
    assert any("needs the role editor" in code.value for code in app.code)
    assert adas.state == "running"


def test_a_promotion_is_stopped_from_its_page(run_page, made, lasting: None) -> None:
    job = board().start("promote", {"adapter": made.best, "format": "safetensors", "force": False}, "")
    app = run_page(made.path, "views/promote.py", adapter=made.best, job=job.job_id)
    next(button for button in app.button if button.label == "Stop").click().run()
    assert not app.exception
    assert job.wait(60) == "cancelled"
    app.run()
    (warning,) = app.warning
    assert warning.value.startswith("It was stopped.")
