"""A run folder says everything that its search needs to be resumed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.schedulers import ASHAScheduler

from rankloom.config import parse_config
from rankloom.errors import ConfigError, SearchError
from rankloom.runs import OBJECTS, RECORD, Run, open_run, plain_config
from rankloom_spaces import load_space

SETTINGS: dict[str, Any] = {"model_name_or_path": "base", "dataset": "rows.jsonl", "training": {"max_steps": 9}}


@pytest.fixture
def saved(make_run: Callable[..., Run]) -> Callable[..., Run]:
    """Saves a run of those settings and more."""
    return partial(make_run, **SETTINGS)


def test_a_run_is_opened_as_it_was_saved(saved: Callable[..., Run], tmp_path: Path) -> None:
    run = saved(tmp_path / "one", seed=3, registry=tmp_path / "registry.duckdb")
    by_name, by_path = open_run("one", tmp_path), open_run(run.folder, tmp_path / "elsewhere")
    assert by_name == by_path == run
    assert by_name.search_config() == parse_config({**SETTINGS, "seed": 3, "registry": tmp_path / "registry.duckdb"})
    assert sorted(path.name for path in run.folder.iterdir()) == [RECORD]


def test_a_moved_run_folder_is_opened_where_it_is(saved: Callable[..., Run], tmp_path: Path) -> None:
    saved(tmp_path / "old" / "one")
    (tmp_path / "old").rename(tmp_path / "new")
    assert open_run("one", tmp_path / "new").folder == tmp_path / "new" / "one"


def test_functions_and_objects_survive(saved: Callable[..., Run], tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        return {"r": trial.suggest_int("r", 1, 8)}

    saved(
        tmp_path / "one",
        space=space,
        sampler=optuna.samplers.RandomSampler(seed=5),
        scheduler=ASHAScheduler(time_attr="steps", max_t=9),
    )
    config = open_run("one", tmp_path).search_config()
    assert config.space(optuna.trial.FixedTrial({"r": 4})) == {"r": 4}
    assert isinstance(config.sampler, optuna.samplers.RandomSampler)
    assert isinstance(config.scheduler, ASHAScheduler)


def test_a_space_is_kept_as_text(saved: Callable[..., Run], tmp_path: Path) -> None:
    space = load_space("lora-small")
    run = saved(tmp_path / "one", space=space)
    assert run.config["space"] == space.to_dict()
    assert not (run.folder / OBJECTS).exists()
    assert load_space(open_run("one", tmp_path).search_config().space) == space


def test_what_cannot_be_kept_is_named(saved: Callable[..., Run], tmp_path: Path) -> None:
    lock = threading.Lock()

    def space(trial: optuna.Trial) -> None:
        with lock:
            trial.suggest_int("r", 1, 8)

    with pytest.raises(ConfigError, match="space must be picklable"):
        saved(tmp_path / "one", space=space)
    assert not (tmp_path / "one" / RECORD).exists()


@pytest.mark.parametrize("settings", [{"space": lambda trial: None}, {"scheduler": None}, {"dataset": object()}])
def test_a_record_is_json_whatever_was_given(settings: dict[str, Any]) -> None:
    values = plain_config(parse_config({**SETTINGS, **settings}))
    assert json.loads(json.dumps(values)) == values


def test_a_search_that_is_not_there_names_those_that_are(saved: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="no search 'two' to resume.*start it without --resume"):
        open_run("two", tmp_path)
    saved(tmp_path / "one")
    with pytest.raises(SearchError, match="there are: one"):
        open_run("two", tmp_path)


def test_a_folder_without_a_record_never_began(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(SearchError, match="holds no search.json: the search never began"):
        open_run("one", tmp_path)


def test_a_name_leads_nowhere_else(saved: Callable[..., Run], tmp_path: Path) -> None:
    saved(tmp_path / "runs" / "one")
    (tmp_path / "secret").mkdir()
    with pytest.raises(SearchError, match="no search"):
        open_run("../secret", tmp_path / "runs")


def test_a_run_has_one_driver_at_a_time(saved: Callable[..., Run], tmp_path: Path) -> None:
    run = saved(tmp_path / "one")
    with run.alone(), pytest.raises(SearchError, match="another process runs the search 'one' now"), run.alone():
        pass
    with run.alone():
        pass


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "one"}', "\x00"])
def test_a_record_that_is_none_is_named(saved: Callable[..., Run], tmp_path: Path, text: str) -> None:
    run = saved(tmp_path / "one")
    (run.folder / RECORD).write_text(text)
    with pytest.raises(SearchError, match=r"one/search\.json cannot be read as the record of a search: .*restore it"):
        open_run("one", tmp_path)


def test_a_path_that_no_system_could_hold_names_no_search(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="no search 'xxx"):
        open_run("x" * 300, tmp_path)
