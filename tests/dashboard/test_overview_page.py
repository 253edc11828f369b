from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import streamlit as st

from rankloom_dashboard import data, upkeep
from rankloom_dashboard.jobs.job import board
from rankloom_registry import Promoted, Registry, SearchEnded, SearchResumed, TrialStarted

OVERVIEW = "views/overview.py"


@pytest.fixture
def look(run_page):
    """Runs the overview twice, so that it shows what a look at the disk has found."""

    def run(registry: Path, **query: str):
        st.cache_resource.clear()
        run_page(registry, OVERVIEW, **query)
        upkeep.inspector().wait()
        return run_page(registry, OVERVIEW, **query)

    return run


def metrics(app) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def table(app, alt: str):
    (found,) = (one for one in app.dataframe if one.proto.alt.startswith(alt))
    return found.value


def links(app) -> dict[str, tuple[str, bool]]:
    return {link.proto.label: (link.proto.query_string, link.proto.disabled) for link in app.get("page_link")}


def test_the_registry_at_a_glance(look, made) -> None:
    app = look(made.path)
    assert not app.exception
    figures = metrics(app)
    assert figures["Adapters kept"] == "3 of 4"
    assert (figures["Searches"], figures["Trials"], figures["Promotions"], figures["Bases"]) == ("1", "8", "1", "1")
    assert figures["Disk"].endswith("iB")
    searches = table(app, "The latest searches")
    assert list(searches["name"]) == ["lora-tiny"]
    assert list(searches["best"]) == ["lora-tiny-5"]
    assert searches["value"][0] == pytest.approx(Registry.open(made.path).searches()[0].best_value)
    assert list(table(app, "What aliases mean")["reference"]) == ["lora-tiny-5@champion"]
    assert list(table(app, "The latest promotions")["adapter"]) == [made.best]
    assert [expander.label for expander in app.expander] == ["1 trial failed"]


def test_a_selected_row_stands_in_the_address_and_can_be_opened(look, made) -> None:
    app = look(made.path)
    assert links(app)["Open search"][1] and links(app)["Open best adapter"][1]
    app = look(made.path, search=made.search_id)
    assert links(app)["Open search"] == (f"search={made.search_id}", False)
    assert links(app)["Open best adapter"] == (f"adapter={made.best}", False)
    assert look(made.path, search="nothing").query_params.get("search") is None


def test_what_runs_is_shown_until_it_ends(look, made, monkeypatch) -> None:
    monkeypatch.setattr(data, "status_now", lambda search: search.status)  # there is no run folder here to ask
    with Registry.open(made.path) as registry:
        registry.record(
            SearchResumed(search_id=made.search_id),
            TrialStarted(trial_id="t-new", search_id=made.search_id, number=8, params={"r": 4}),
        )
    app = look(made.path)
    assert not app.exception
    assert len(app.get("progress")) == 1
    with Registry.open(made.path) as registry:
        registry.record(SearchEnded(search_id=made.search_id, status="completed"))
    app.run()
    assert not app.get("progress")


def test_a_search_whose_process_is_gone_needs_attention(look, made, monkeypatch) -> None:
    monkeypatch.setattr(data, "status_now", lambda search: "interrupted")
    with Registry.open(made.path) as registry:
        registry.record(SearchResumed(search_id=made.search_id))
    app = look(made.path)
    assert not app.get("progress")
    assert app.expander[0].label == "1 search ended without a word"
    assert list(table(app, "The latest searches")["state"][0]) == ["interrupted"]


def test_what_is_wrong_needs_attention(look, made) -> None:
    with Registry.open(made.path) as registry:
        shutil.rmtree(registry.adapter(made.second).artifact_path)
        registry.record(
            SearchEnded(search_id=made.search_id, status="failed", message="the disk is full"),
            Promoted(
                promotion_id="p-2",
                adapter_id=made.best,
                status="refused",
                recipe="full-precision",
                format="nf4",
                output_path="x",
                output_sha256="",
                checks={},
                reason="worse than it may be",
            ),
        )
    app = look(made.path)
    assert not app.exception
    assert [expander.label for expander in app.expander] == [
        "1 adapter lacks its files",
        "Of the latest searches 1 failed",
        "1 promotion was refused by a gate",
        "1 trial failed",
    ]
    assert list(table(app, "1 adapter lacks")["adapter"]) == [made.second]
    assert list(table(app, "1 promotion was")["reason"]) == ["worse than it may be"]


def test_all_files_are_verified_by_a_program_of_its_own(look, press, own_jobs, made) -> None:
    with Registry.open(made.path) as registry:
        weights = registry.adapter(made.second).artifact_path / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    app = look(made.path)
    press(app, "Verify all files")
    (job,) = board().all("verify")
    assert job.wait(60) == "done"
    app.run()
    assert not app.exception
    assert app.expander[0].label == "1 adapter has other files than were recorded"
    assert any("3 adapters verified" in caption.value for caption in app.caption)


def test_nothing_is_read_as_markdown(look, hostile, read_as_markdown) -> None:
    with Registry.open(hostile.path) as registry:
        registry.record(
            TrialStarted(trial_id="t-new", search_id=hostile.search_id, number=8, params={"r": 4}),
        )
    app = look(hostile.path)
    assert not app.exception
    assert "evil" in str([one.value for one in app.dataframe])
    assert "evil" not in read_as_markdown(app)


def test_a_verification_that_fails_is_told(look, made, tmp_path: Path) -> None:
    app = look(made.path)
    job = board().start("verify", {"registry": str(tmp_path / "none.duckdb")}, "")
    assert job.wait(60) == "failed"
    app.run()
    assert [error.value for error in app.error] == ["The files could not be verified."]
    assert any("none.duckdb" in code.value for code in app.code)


def test_two_visitors_do_not_verify_at_once(look, run_page, made) -> None:
    pages = [look(made.path), run_page(made.path, OVERVIEW)]
    for app in pages:
        next(button for button in app.button if button.label == "Verify all files").click().run()
        assert not app.exception
    (job,) = board().all("verify")
    assert job.wait(60) == "done"


def test_for_a_search_that_is_gone_the_page_does_not_hurry(look, made, monkeypatch) -> None:
    seen, fragment = [], st.fragment

    def remember(body, *, run_every):
        seen.append(run_every)
        return fragment(body, run_every=run_every)

    monkeypatch.setattr(st, "fragment", remember)
    with Registry.open(made.path) as registry:
        registry.record(SearchResumed(search_id=made.search_id))
    paces = {}
    for status in ("running", "interrupted"):
        monkeypatch.setattr(data, "status_now", lambda search, status=status: status)
        look(made.path)
        paces[status] = seen[-1]
    assert paces["running"] < paces["interrupted"]
