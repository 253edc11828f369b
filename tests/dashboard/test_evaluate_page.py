"""The page of evaluations, on a search that was really trained; its work is done by a real program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from rankloom.evaluation.base import BASE
from rankloom.evaluation.report import Report, Row, RowResult, Subject, load_report, report_file, save_report
from rankloom.evaluation.significance import compare
from rankloom_dashboard import access
from rankloom_dashboard.access import Visitor
from rankloom_dashboard.jobs.job import board
from rankloom_registry import Registry

EVALUATE = "views/evaluate.py"
pytestmark = pytest.mark.usefixtures("own_jobs", "changing")
Press = Callable[[AppTest, str], AppTest]


def codes(app: AppTest) -> list[str]:
    return [element.value for element in app.code]


def texts(app: AppTest) -> str:
    return " ".join(element.value for element in app.text)


def test_an_evaluation_from_the_button_to_the_rows(run_page: Callable[..., AppTest], world: Any, press: Press) -> None:
    good, slow = world.adapters
    query = {"ids": f"{good},{slow}", "metrics": ["Loss", "ROUGE-L"], "limit": "8", "tokens": "6"}
    app = run_page(world.registry, EVALUATE, **query)
    assert not app.exception
    assert f"rankloom evaluate {good} {slow} --base-too --metrics loss,rouge_l --limit 8" in codes(app)[0]
    press(app, "Start")
    assert not app.exception and not app.error
    (job,) = board().all("evaluate")
    assert app.query_params["job"] == job.job_id or app.query_params["job"] == [job.job_id]
    assert any(button.label == "Cancel" for button in app.button)
    # The address is enough to find it again, and a second one does not start meanwhile.
    again = run_page(world.registry, EVALUATE, **query, job=job.job_id)
    assert next(button for button in again.button if button.label == "Start").disabled
    assert job.wait(200) == "done", job.error
    app = run_page(world.registry, EVALUATE, **query, job=job.job_id)
    assert not app.exception and not app.error

    kept = load_report(report_file(world.registry, job.result["run"]))
    shown = {alt: frame for frame in app.dataframe if (alt := frame.proto.alt)}
    figures = shown["Figures of each model"].value
    assert figures["model"].iloc[0] == "base"
    assert list(figures["eval loss"]) == [subject.metrics["eval_loss"] for subject in kept.subjects]
    assert list(figures["ROUGE-L"]) == [subject.metrics["rouge_l"] for subject in kept.subjects]
    differences = shown["Each model beside those before it: difference, interval, p and verdict"].value
    assert list(differences["difference"]) == [one.difference for one in kept.comparisons]
    assert {element.value for element in app.success} == {
        "No regression: worse on 0 of 8 rows (0.0%), better on 8, each by more than 0.1 nats a token."
    }
    examples = shown["Rows, from the one that is won most to the one that is lost most"].value
    assert list(examples["by"]) == sorted(examples["by"], reverse=True) and len(examples) == 8


def test_the_page_and_the_command_line_give_the_same_figures(
    run_page: Callable[..., AppTest],
    world: Any,
    press: Press,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rankloom.cli import main

    app = run_page(world.registry, EVALUATE, ids=world.adapters[0], metrics=["Loss", "Exact match"], tokens="8")
    press(app, "Start")
    (job,) = board().all("evaluate")
    assert job.wait(200) == "done", job.error
    by_page = load_report(report_file(world.registry, job.result["run"])).to_dict()
    monkeypatch.setattr(sys, "argv", [*codes(app)[0].split(), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    by_command = json.loads(capsys.readouterr().out)
    for name in ("subjects", "comparisons", "dataset", "max_new_tokens", "base_content_root"):
        assert by_command[name] == by_page[name], name
    recorded = Registry.open(world.registry).evaluations(world.adapters[0])
    assert recorded[0].metrics == recorded[1].metrics


def test_an_evaluation_can_be_cancelled_and_its_failure_is_read(
    run_page: Callable[..., AppTest], world: Any, press: Press
) -> None:
    app = run_page(world.registry, EVALUATE, ids=world.adapters[0])
    press(app, "Start")
    (job,) = board().all("evaluate")
    press(app, "Cancel")
    assert job.wait(60) == "cancelled"
    app = run_page(world.registry, EVALUATE, ids=world.adapters[0], job=job.job_id, dataset="/no/such/file.jsonl")
    assert any("was cancelled" in element.value for element in app.info)
    press(app, "Start")
    failed = board().all("evaluate")[0]
    assert failed.wait(120) == "failed"
    app = run_page(world.registry, EVALUATE, job=failed.job_id)
    assert any("no dataset at '/no/such/file.jsonl'" in code for code in codes(app))
    press(app, "Dismiss")
    assert "job" not in app.query_params
    assert Registry.open(world.registry).evaluations(world.adapters[0]) == []


def test_who_may_only_look_starts_nothing(run_page: Callable[..., AppTest], world: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(access, "visitor", lambda: Visitor(who="eve@example.org", role="viewer"))
    app = run_page(world.registry, EVALUATE, ids=world.adapters[0])
    assert not app.exception
    assert next(button for button in app.button if button.label == "Start").disabled
    assert board().all() == []


def test_an_address_with_what_is_not_there(run_page: Callable[..., AppTest], world: Any) -> None:
    app = run_page(world.registry, EVALUATE, ids="nowhere", job="evaluate-1", evaluation="zz")
    assert not app.exception
    assert len(app.error) == 1 and any("ended some time ago" in element.value for element in app.info)
    assert "rankloom evaluate ADAPTER --base-too" in codes(app)


def test_an_evaluation_without_rows_shows_what_was_recorded(run_page: Callable[..., AppTest], made_once: Any) -> None:
    app = run_page(made_once.path, EVALUATE, evaluation="e-1")
    assert not app.exception
    assert any("only the figures were kept" in element.value for element in app.info)
    assert app.dataframe[0].value["perplexity"][0] == 7.8555


def test_what_others_wrote_stays_text(
    run_page: Callable[..., AppTest], hostile: Any, read_as_markdown: Callable[[AppTest], str]
) -> None:
    evil = hostile.text + "x" * 1_000_000
    values = {"a1": 1.0, BASE: 2.0}
    rows = tuple(
        Row(
            prompt=evil,
            expected=evil,
            results={who: RowResult(loss=value, tokens=1, text=evil) for who, value in values.items()},
        )
        for _ in range(2)
    )
    found = compare("loss", (BASE, [2.0, 2.0]), ("a1", [1.0, 1.0]))
    assert found is not None
    figures = {"eval_loss": 1.0, evil: 2.0}
    subjects = (Subject(subject=BASE, name=BASE, metrics={}), Subject(subject="a1", name=evil, metrics=figures))
    report = Report(
        run="e",  # the run of the hostile registry's records e-1 and e-2
        base_content_root="d1" * 32,
        dataset={"source": evil, "rows": 2},
        max_new_tokens=1,
        subjects=subjects,
        comparisons=(found,),
        rows=rows,
    )
    save_report(report, hostile.path)
    app = run_page(hostile.path, EVALUATE, evaluation="e", ids=hostile.imported)
    assert not app.exception
    assert "evil.example" in texts(app)
    assert "evil" not in read_as_markdown(app)
    assert max(len(str(cell)) for frame in app.dataframe for cell in frame.value.to_numpy().flatten()) < 1_000
