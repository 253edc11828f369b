"""A promotion from the page: its gates one after the other, what it made, a refusal that is overridden, and back."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from rankloom.errors import RankloomError
from rankloom_dashboard.gates import comparison_rows, gates_info, recorded_gates
from rankloom_dashboard.jobs import job as jobs
from rankloom_dashboard.jobs.job import board
from rankloom_dashboard.jobs.promoting import promote
from rankloom_registry import Promoted, Registry

PROMOTE = "views/promote.py"
GATES = ["base", "disk", "finite", "replay", "drift"]


def field(app: Any, kind: str, label: str) -> Any:
    (found,) = (one for one in getattr(app, kind) if one.label.startswith(label))
    return found


def codes(app: Any) -> list[str]:
    return [code.value for code in app.code]


def start(app: Any, output: Path, why: str, *, alias: str = "", tolerance: float | None = None) -> Any:
    field(app, "text_input", "Folder to make").set_value(str(output))
    field(app, "text_input", "Alias").set_value(alias)
    app.text_input(key="why").set_value(why)
    if tolerance is not None:
        field(app, "number_input", "Tolerance").set_value(tolerance)
    field(app, "button", "Promote").click()
    return app.run()


def finished(app: Any) -> Any:
    job = board().find(app.query_params["job"])
    assert job is not None
    assert job.wait(240) != "running"
    return app.run()


def test_an_adapter_is_promoted_and_that_is_undone(run_page, press, world, tmp_path: Path, changing, own_jobs) -> None:
    registry = Registry.open(world.registry)
    app = run_page(world.registry, PROMOTE, adapter=world.adapters[0])
    assert not app.exception
    app = start(app, tmp_path / "merged", "  ", alias="prod")
    assert len(app.error) == 1 and "say why" in codes(app)[0]
    assert not (tmp_path / "merged").exists() and registry.promotions() == []

    app = finished(start(app, tmp_path / "merged", "the best", alias="prod"))
    assert not app.exception and not app.error
    assert [success.value for success in app.success] == ["It passed, and was let out."]
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert str(tmp_path / "merged") in codes(app)
    assert any("AutoModelForCausalLM.from_pretrained(folder" in code for code in codes(app))
    (record,) = registry.promotions()
    assert (record.status, record.reason, record.alias) == ("done", "the best", "negation@prod")
    told = board().find(app.query_params["job"]).told
    assert [figures["gate"] for figures in told] == GATES
    assert all(gate.state == "passed" for gate in gates_info("safetensors", told, None, running=False))
    assert [gate.figures for gate in gates_info("safetensors", told, None, running=False)] == [
        gate.figures for gate in recorded_gates(record.format, record.checks)
    ]

    app.text_input(key="undo-why").set_value("it was a trial")
    press(app, "Undo the promotion")
    assert not app.exception and not app.error
    assert registry.promotions()[0].status == "undone"
    assert registry.aliases() == []
    assert not any(button.label == "Undo the promotion" for button in app.button)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_refused_model_is_let_out_only_with_a_reason(
    run_page, press, world, tmp_path: Path, changing, own_jobs
) -> None:
    registry = Registry.open(world.registry)
    app = run_page(world.registry, PROMOTE, adapter=world.adapters[0], compare="false")
    app = finished(start(app, tmp_path / "merged", "the best", alias="prod", tolerance=-10.0))
    assert [error.value for error in app.error] == ["The last gate refused the model: it was not let out."]
    assert any("beyond the tolerance -10" in code and "--format adapter" in code for code in codes(app))
    assert not (tmp_path / "merged").exists() and registry.aliases() == []
    assert registry.promotions()[0].status == "refused"
    told = board().find(app.query_params["job"]).told
    assert [gate.state for gate in gates_info("safetensors", told, None, running=False)] == ["passed"] * 4 + ["closed"]
    assert app.dataframe[0].value["model"].iloc[0] == "adapter as trained"

    press(app, "Let it out all the same")
    refused = ["The last gate refused the model: it was not let out.", "The promotion was not started."]
    assert [error.value for error in app.error] == refused
    app.text_input(key="force-why").set_value("we know what we do")
    app = finished(press(app, "Let it out all the same"))
    assert [success.value for success in app.success] == ["It was let out all the same."]
    latest = registry.promotions()[0]
    assert (latest.status, latest.forced, latest.reason) == ("done", True, "we know what we do")
    assert registry.adapter("negation@prod").adapter_id == world.adapters[0]


def test_a_gate_that_is_closed_early_is_told_with_its_problem(world, tmp_path: Path) -> None:
    order = {"registry": str(world.registry), "adapter": world.adapters[0], "output": str(tmp_path / "out")}
    heard: list[dict[str, Any]] = []
    with pytest.raises(RankloomError):
        promote(order | {"base": str(tmp_path / "nowhere")}, heard.append)
    told = [message["told"] for message in heard if "told" in message]
    first, *others = gates_info("safetensors", told, None, running=False)
    assert (first.name, first.state) == ("base", "closed") and "nowhere" in first.problem
    assert {gate.state for gate in others} == {"waiting"}
    assert not (tmp_path / "out").exists()


def test_who_may_only_look_sees_the_form_and_cannot_send_it(run_page, made) -> None:
    app = run_page(made.path, PROMOTE, adapter=made.best)
    assert not app.exception
    assert field(app, "button", "Promote").disabled
    assert field(app, "button", "Undo the promotion").disabled
    assert any(code.startswith(f"rankloom promote {made.best} --output") for code in codes(app))


def test_an_output_that_exists_is_refused_before_anything_starts(
    run_page, made, tmp_path: Path, changing, own_jobs
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    app = start(run_page(made.path, PROMOTE, adapter=made.best), tmp_path / "taken", "because")
    assert [error.value for error in app.error] == ["The promotion was not started."]
    assert any("must be a new or empty folder" in code for code in codes(app))
    assert board().all() == []


@pytest.mark.parametrize("format", ["safetensors", "nf4", "gguf", "adapter"])
def test_the_address_holds_what_is_to_be_made(run_page, made, format: str) -> None:
    app = run_page(made.path, PROMOTE, adapter=made.best, format=format)
    assert not app.exception
    assert app.segmented_control[0].value == format
    assert any(f"--format {format}" in code for code in codes(app))
    assert ("--recipe full-precision" in codes(app)[0]) == (format in ("safetensors", "gguf"))


def test_a_discarded_adapter_cannot_be_promoted(run_page, made) -> None:
    app = run_page(made.path, PROMOTE, adapter=made.discarded)
    assert not app.exception
    assert not app.button and "cannot be promoted" in app.info[0].value


def test_what_a_registry_says_of_a_promotion_is_text_whatever_it_is(
    run_page, made, hostile_text: str, read_as_markdown
) -> None:
    long = hostile_text * 10_000
    wild: dict[str, Any] = {gate: {"passed": True, "verdict": long, "tolerance": "x"} for gate in GATES}
    wild |= {"measured": {long: {long: {"loss": 1.0}}, "x": 3}, "made": long}
    wild |= {"serving": {long: {"ok": True}}, "replay": [long]}
    with Registry.open(made.path) as registry:
        registry.record(
            Promoted(
                promotion_id="p-wild",
                adapter_id=made.best,
                status="done",
                recipe=long,
                format=long,
                output_path=long,
                output_sha256="",
                checks=wild,
                reason=long,
                alias=long,
            )
        )
    app = run_page(made.path, PROMOTE, adapter=made.best)
    assert not app.exception
    assert any("evil" in text.value for text in app.text) and any("evil" in code for code in codes(app))
    assert max(len(str(one.value)) for kind in ("code", "text") for one in getattr(app, kind)) < 6000
    assert all(len(str(cell)) < 3000 for frame in app.dataframe for cell in frame.value.to_numpy().ravel())
    assert "evil" not in read_as_markdown(app)


def test_the_gates_are_shown_where_they_are() -> None:
    def states(told: list[str], stage: str | None, *, running: bool = True) -> list[str]:
        figures = [{"gate": name, "passed": True} for name in told]
        return [gate.state for gate in gates_info("safetensors", figures, stage, running=running)]

    assert states([], None) == ["running", *["waiting"] * 4]
    assert states(["base"], "fingerprint base") == ["passed", "running", *["waiting"] * 3]
    assert states(["base", "disk"], "merge, full-precision") == ["passed", "passed", "running", "waiting", "waiting"]
    assert states(GATES[:4], "measure adapter, held-out") == [*["passed"] * 4, "running"]
    # The other recipe is merged while the models are measured.
    assert states(GATES[:4], "merge, as-trained") == [*["passed"] * 4, "running"]
    assert states(GATES[:2], "merge, full-precision", running=False) == ["passed", "passed", *["waiting"] * 3]
    (serving,) = gates_info("adapter", [], None, running=True)
    assert (serving.name, serving.state) == ("serving", "running")


def test_the_comparison_has_intervals_and_a_star() -> None:
    model = {"loss": 2.0, "interval": [1.5, 2.5], "delta": -0.1, "low": -0.2, "high": 0.05, "kl": 0.1, "top1": 0.9}
    alone = {"loss": 2.1, "interval": None}
    rows = comparison_rows({"held-out": {"rows": 12, "adapter": alone, "full-precision": model}}, "full-precision")
    assert [row["model"] for row in rows] == ["adapter as trained", "merged full-precision ★"]
    assert rows[0]["loss interval"] is None and rows[0]["difference interval"] is None
    assert (rows[1]["loss interval"], rows[1]["difference interval"]) == ("1.5000 … 2.5000", "-0.2000 … +0.0500")
    assert rows[1]["rows"] == "held-out (12)"


def test_the_command_line_does_the_same(run_page, made, changing) -> None:
    app = run_page(made.path, PROMOTE, adapter=made.best)
    field(app, "text_input", "Alias").set_value(" prod ")
    field(app, "text_input", "Folder of the base").set_value("/my bases/tiny")
    field(app, "text_input", "Held-out rows").set_value("rows.jsonl")
    field(app, "button", "Promote").click()  # without a reason
    app.run()
    (command,) = (code for code in codes(app) if code.startswith("rankloom promote"))
    words = shlex.split(command)
    given = {flag: words[words.index(flag) + 1] for flag in ("--alias", "--base", "--dataset")}
    assert given == {"--alias": "prod", "--base": "/my bases/tiny", "--dataset": "rows.jsonl"}


@pytest.mark.parametrize("output", ["", "~no-such-user/merged"])
def test_an_output_that_can_be_none_is_a_message(run_page, made, output: str, changing) -> None:
    before = len(board().all())
    app = run_page(made.path, PROMOTE, adapter=made.best)
    field(app, "text_input", "Folder to make").set_value(output)
    app.text_input(key="why").set_value("because")
    field(app, "button", "Promote").click()
    app.run()
    assert not app.exception
    assert [error.value for error in app.error] == ["The promotion was not started."]
    assert len(board().all()) == before


def test_a_forced_promotion_that_fails_says_why_and_not_that_it_was_refused(
    run_page, made, tmp_path: Path, monkeypatch, changing, own_jobs
) -> None:
    (tmp_path / "full_worker.py").write_text(
        """print('{"told": {"gate": "drift", "passed": false}}')\nprint('{"error": "the disk is full"}')\n"""
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.setattr(jobs, "WORKER", "full_worker")
    job = board().start("promote", {"adapter": made.best, "format": "safetensors", "force": True}, "")
    assert job.wait(60) == "failed"
    app = run_page(made.path, PROMOTE, adapter=made.best, job=job.job_id)
    assert not app.exception
    assert [error.value for error in app.error] == ["The promotion failed: nothing was let out."]
    assert "the disk is full" in codes(app)
    assert not any(button.label == "Let it out all the same" for button in app.button)
