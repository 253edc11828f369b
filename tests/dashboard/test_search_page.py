from __future__ import annotations

import math
from datetime import timedelta

import pytest

from rankloom_dashboard import data
from rankloom_dashboard.launch import CHANGES_VARIABLE, REGISTRY_VARIABLE
from rankloom_registry import (
    Registry,
    SearchEnded,
    SearchResumed,
    SearchStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)

SEARCH = "views/search.py"
TABS = ("Trials", "Lanes", "Parameters", "Pairs", "Trade-offs")


@pytest.fixture
def running(made, resumed):
    """The run of the search, which was resumed and has a trial in training."""
    started = TrialStarted(trial_id="t-new", search_id=made.search_id, number=8, params={"r": 4}, lane="lane-0", slot=3)
    with Registry.open(made.path) as registry:
        registry.record(started)
    return resumed


def metrics(app) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def charts(app) -> list[str]:
    return [element.proto.spec for element in app.get("plotly_chart")]


def subheaders(app) -> list[str]:
    return [element.value for element in app.subheader]


def add_search(made, search_id: str, *events, metric: str = "eval_loss", mode: str = "min", config=None) -> None:
    with Registry.open(made.path) as registry:
        known = registry.search(made.search_id)
        registry.record(
            SearchStarted(
                search_id=search_id,
                name=search_id,
                base_content_root=known.base_content_root,
                dataset={},
                config=config or {},
                metric=metric,
                mode=mode,
                num_samples=4,
                seed=0,
                at=known.created_at - timedelta(days=1),
            ),
            *events,
        )


def trial(search_id: str, number: int, status: str = "completed", loss: float | None = 2.0, **params):
    trial_id = f"{search_id}-{number}"
    measured = {} if loss is None else {"eval_loss": loss, "train_loss": loss}
    return [
        TrialStarted(
            trial_id=trial_id, search_id=search_id, number=number, params=params, lane="lane-0", slot=number % 2
        ),
        *([TrialReported(trial_id=trial_id, step=10, metrics=measured)] if measured else []),
        *([TrialEnded(trial_id=trial_id, status=status, metrics=measured)] if status != "running" else []),
    ]


def test_the_trials_stand_in_order_with_what_differs(run_page, made_once) -> None:
    app = run_page(made_once.path, SEARCH)
    assert not app.exception
    assert app.query_params["search"] == made_once.search_id
    figures = metrics(app)
    assert figures["Trials"] == "8 of 8"
    assert figures["Gain over trial 0"].startswith("+0.17")
    table = app.dataframe[0].value
    assert list(table["trial"]) == [5, 2, 4, 0, 3, 1, 7, 6]
    assert {"state", "steps", "eval_loss", "lane", "slot", "learning_rate", "r"} <= set(table.columns)
    assert "use_rslora" not in table.columns  # it is the same in every trial
    assert any("use_rslora no" in text.value for text in app.text)
    assert len(charts(app)) == 2


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.parametrize("count", ["Completed", "Stopped too", "At the first evaluation"])
def test_each_tab_opens_from_the_address(run_page, made_once, tab: str, count: str) -> None:
    app = run_page(made_once.path, SEARCH, tab=tab, count=count, across="adapter size")
    assert not app.exception
    drawn = {"Trials": 0, "Lanes": 1, "Pairs": 2, "Trade-offs": 2}
    if tab in drawn:
        assert len(charts(app)) == 2 + drawn[tab]
    else:
        assert {"Parallel coordinates", "Importance", "Slices"} <= set(subheaders(app))
    assert not app.error


def test_the_address_says_what_is_drawn(run_page, made_once) -> None:
    app = run_page(made_once.path, SEARCH, curves="Top 5", stopped="false", against="Device time", log="log loss")
    assert not app.exception
    curves, history = charts(app)
    assert '"stopped early"' not in curves
    assert '"type":"log"' in curves
    assert "device time, minutes" in history
    (stopped,) = [toggle for toggle in app.toggle if toggle.key == "stopped"]
    assert stopped.value is False
    stopped.set_value(True).run()
    assert '"stopped early"' in charts(app)[0]


def test_only_completed_trials_count_unless_asked_for(run_page, made_once) -> None:
    app = run_page(made_once.path, SEARCH, tab="Parameters")
    assert any("4 of 8 count" in caption.value for caption in app.caption)
    app = run_page(made_once.path, SEARCH, tab="Parameters", count="Stopped too")
    assert any("7 of 8 count" in caption.value for caption in app.caption)


def test_a_search_that_maximises_is_ranked_the_other_way(run_page, made) -> None:
    events = [
        event for number, loss in enumerate((2.0, 3.0, 2.5)) for event in trial("up", number, loss=loss, r=number)
    ]
    add_search(made, "up", *events, metric="train_loss", mode="max")
    app = run_page(made.path, SEARCH, search="up")
    assert not app.exception
    assert list(app.dataframe[0].value["trial"]) == [1, 2, 0]
    assert "train_loss" in app.dataframe[0].value.columns
    assert metrics(app)["Best train loss"] == "3.0000"
    assert metrics(app)["Gain over trial 0"] == "+1.0000"


def test_the_address_may_name_a_search_or_be_wrong(run_page, made, hostile_text: str) -> None:
    add_search(made, "older", *trial("older", 0))
    app = run_page(made.path, SEARCH, search="older")
    assert app.query_params["search"] == "older"
    app = run_page(made.path, SEARCH, search="lora-tiny")
    assert not app.error
    assert app.query_params["search"] == made.search_id
    app = run_page(made.path, SEARCH, search=hostile_text)
    assert not app.exception
    assert len(app.error) == 1
    assert app.query_params["search"] == made.search_id


def test_a_metric_that_is_not_kept_is_said(run_page, made) -> None:
    add_search(made, "other", *trial("other", 0), metric="accuracy", mode="max")
    app = run_page(made.path, SEARCH, search="other")
    assert not app.exception
    assert len(app.warning) == 1
    assert metrics(app)["Best eval loss"] == "2.0000"


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.parametrize(
    "trials",
    [
        [("completed", 2.0)],
        [("failed", None), ("failed", None)],
        [("completed", math.nan), ("completed", math.inf)],
        [("completed", 2.0), ("completed", 2.0)],
        [("stopped", 2.0), ("stopped", 2.5)],
    ],
    ids=["one", "failed", "not-a-number", "all-the-same", "none-completed"],
)
def test_a_search_of_little_is_shown_without_charts_that_tell_nothing(run_page, made, tab: str, trials) -> None:
    events = [
        event
        for number, (status, loss) in enumerate(trials)
        for event in trial("little", number, status, loss, r=8, learning_rate=1e-4)
    ]
    add_search(made, "little", *events)
    app = run_page(made.path, SEARCH, search="little", tab=tab)
    assert not app.exception
    assert not app.error


def test_a_search_without_trials_says_so(run_page, made) -> None:
    add_search(made, "fresh")
    app = run_page(made.path, SEARCH, search="fresh")
    assert not app.exception
    assert any("No trial has started" in info.value for info in app.info)


def test_while_a_search_runs_the_page_refreshes_itself_until_it_ends(run_page, made) -> None:
    with Registry.open(made.path) as registry:
        registry.record(
            SearchResumed(search_id=made.search_id),
            TrialStarted(trial_id="t-new", search_id=made.search_id, number=8, params={"r": 4}, lane="lane-0", slot=3),
        )
    app = run_page(made.path, SEARCH)
    assert not app.exception
    assert app.get("progress")
    table = app.dataframe[0].value
    assert list(table.loc[table["trial"] == 8, "slot"]) == [3]
    with Registry.open(made.path) as registry:
        registry.record(SearchEnded(search_id=made.search_id, status="completed"))
    app.run()
    assert not app.get("progress")


def popovers(app) -> dict[str, bool]:
    """The popovers by label, and whether each is shut for good."""
    return {block.proto.popover.label: block.proto.popover.disabled for block in app.get("popover")}


def test_a_search_that_runs_can_be_told_what_to_do(run_page, made, running, driven, changing) -> None:
    answer = {"num_samples": 9}
    with driven(running, lambda request: answer) as heard:
        app = run_page(made.path, SEARCH)
        assert popovers(app) == {"Stop a trial": False, "Stop the search": False, "Add trials": False}
        app.text_input(key="why-stop-trial").set_value("diverges")
        app.button(key="stop-trial-8").click().run()
        app.number_input(key="more-trials").set_value(3)
        app.button(key="add-trials").click().run()
        app.button(key="stop-search").click().run()
        assert not app.exception
        assert not app.error
        assert [(asked.kind, asked.trial, asked.count, asked.why) for asked in heard] == [
            ("stop_trial", 8, None, "diverges"),
            ("add_trials", None, 3, ""),
            ("stop_search", None, None, ""),
        ]
        answer["refusal"] = "the space holds no more"
        app.button(key="add-trials").click().run()
        assert not app.exception
        assert len(app.error) == 1
        assert any("the space holds no more" in code.value for code in app.code)


def test_who_only_looks_can_tell_a_search_nothing(
    run_page, made, running, driven, changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driven(running) as heard:
        app = run_page(made.path, SEARCH)
        monkeypatch.setenv(CHANGES_VARIABLE, "0")
        app.button(key="stop-search").click().run()  # as a page that was opened before, or a forged message, would
        assert heard == []
        assert set(popovers(app).values()) == {True}


def test_a_search_whose_process_died_is_not_called_running(run_page, made, running, driven) -> None:
    with driven(running):
        assert run_page(made.path, SEARCH).get("progress")
    app = run_page(made.path, SEARCH)
    assert not app.exception
    assert not app.get("progress")
    assert not popovers(app)
    assert len(app.warning) == 1


@pytest.mark.parametrize("tab", TABS)
def test_what_others_wrote_is_never_read_as_markdown(
    run_page, made, hostile_text: str, read_as_markdown, tab: str
) -> None:
    events = [
        event
        for number in range(4)
        for event in trial(
            "evil",
            number,
            loss=2.0 + number,
            **{hostile_text: f"{hostile_text}{number}", "r": 4 * (number + 1), "big": 10**100 + number},
        )
    ]
    started = TrialStarted(trial_id="evil-9", search_id="evil", number=9, params={}, lane=hostile_text)
    add_search(made, "evil", *events, started, metric=hostile_text)
    with Registry.open(made.path) as registry:
        registry.record(SearchEnded(search_id="evil", status="failed", message=hostile_text))
    app = run_page(made.path, SEARCH, search="evil", tab=tab)
    assert not app.exception
    assert "evil.example" not in read_as_markdown(app)
    assert not any("<script" in spec for spec in charts(app))


@pytest.mark.parametrize("tab", TABS)
def test_text_of_a_megabyte_does_not_reach_the_browser(run_page, made, tab: str) -> None:
    long = "x" * 1_000_000
    events = [
        event
        for number in range(4)
        for event in trial("long", number, loss=2.0 + number, a=f"{long}{number}", b=number)
    ]
    started = TrialStarted(trial_id="long-9", search_id="long", number=9, params={long: 1, "c": long}, lane=long)
    add_search(made, "long", *events, started, metric=long)
    with Registry.open(made.path) as registry:
        registry.record(SearchEnded(search_id="long", status="failed", message=long))
    app = run_page(made.path, SEARCH, search="long", tab=tab)
    assert not app.exception
    shown = [element for element in app if getattr(element, "proto", None) is not None]
    assert {"text", "code", app.dataframe[0].type if tab == "Trials" else "plotly_chart"} <= {
        item.type for item in shown
    }
    assert sum(item.proto.ByteSize() for item in shown) < 300_000


def test_an_empty_registry_says_what_to_run(run_page, tmp_path) -> None:
    with Registry.open(tmp_path / "registry.duckdb", create=True):
        pass
    app = run_page(tmp_path / "registry.duckdb", SEARCH)
    assert not app.exception
    assert [code.value for code in app.code] == ["rankloom quickstart"]


def test_a_read_follows_what_a_running_search_publishes(made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that comes after the file's last change is news, too."""
    monkeypatch.setenv(REGISTRY_VARIABLE, str(made.path))
    before = data.stamp()
    with Registry.open(made.path) as registry:
        registry.snapshot()
    assert data.stamp() != before


def test_the_size_of_a_rank_is_that_of_kept_weights(made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(made.path))
    # Float32 matrices of r by 4 and 8 by r.
    assert data.rank_bytes("c0" * 32) == {"all-linear": 4 * (4 + 8)}
    assert data.rank_bytes("none") == {}
    with Registry.open(made.path) as registry:
        for adapter in registry.adapters("status = 'available'"):
            (adapter.artifact_path / "adapter_model.safetensors").unlink()
            made.path.touch()
    assert data.rank_bytes("c0" * 32) == {}


def test_every_slice_says_which_parameter_it_is_of(run_page, made) -> None:
    app = run_page(made.path, SEARCH, tab="Parameters", count="Stopped too")
    assert not app.exception
    told = [element.proto.alt for element in app.get("plotly_chart")]
    for name in ("learning_rate", "r", "lora_alpha", "target_modules"):
        assert f"eval loss of 7 trials against {name}" in told
    assert any("from the 7 trials that have them all" in caption.value for caption in app.caption)
