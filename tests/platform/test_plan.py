"""A plan refuses what the search would refuse, also of a search that is taken up again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankloom import Search
from rankloom.config import parse_config
from rankloom.errors import SearchError
from rankloom.runs import Run
from rankloom_registry import Registry, RegistryFormatError, RegistryWriteError, validate_name


@pytest.fixture
def begun(world: Any, make_run: Callable[..., Run]) -> Run:
    """A search that can be resumed."""
    registry = Registry.open(world.registry)
    (search,) = registry.searches()
    return make_run(
        world.registry.with_suffix(".runs") / search.name,
        search_id=search.search_id,
        base_path=str(world.base),
        base_content_root=search.base_content_root,
        **search.config | {"registry": str(world.registry), "space": "lora-small"},
    )


def test_a_plan_of_a_resumed_search_reads_the_rows_that_it_began_with(begun: Run) -> None:
    config = {**begun.config, "dataset": "moved.jsonl"}
    dataclasses.replace(begun, config=config).save(parse_config(config))
    before = sorted(begun.folder.rglob("*"))
    plan = Search.resume(begun.folder).plan()
    assert (plan.name, plan.run_folder, plan.data.train_rows) == (begun.name, str(begun.folder), 48)
    assert set(begun.folder.rglob("*")) - set(before) <= {begun.folder / "driver.lock"}


def test_a_plan_refuses_what_resuming_would(begun: Run, world: Any) -> None:
    search = Search.resume(begun.folder)
    with begun.alone(), pytest.raises(SearchError, match="another process runs"):
        search.plan()
    dataclasses.replace(begun, base_content_root="0" * 64).save(search.config)
    with pytest.raises(SearchError, match="not the one that 'negation' began with"):
        Search.resume(begun.folder).plan()
    world.registry.write_text("not a database")
    with pytest.raises(RegistryFormatError):
        search.plan()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_plan_sees_what_cannot_be_written(tiny_model: Path, rows_file: Path, tmp_path: Path, world: Any) -> None:
    def plan(**settings: Any) -> None:
        Search(str(tiny_model), str(rows_file), registry=world.registry, **settings).plan()

    (tmp_path / "runs").mkdir()
    for unwritable, error in ((tmp_path / "runs", SearchError), (world.registry, RegistryWriteError)):
        mode = unwritable.stat().st_mode
        unwritable.chmod(0o555)
        try:
            with pytest.raises(error, match="cannot be written"):
                plan(storage_path=tmp_path / "runs")
        finally:
            unwritable.chmod(mode)


def test_a_search_without_a_name_has_one_that_the_registry_takes(
    tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    for folder in ("模型 é", "a..b.5"):
        base = tmp_path / folder
        base.symlink_to(tiny_model)
        plan = Search(str(base), str(rows_file), registry=tmp_path / "registry.duckdb").plan()
        assert validate_name(plan.name) == plan.name


def test_trials_that_were_added_after_a_search_was_opened_count(begun: Run) -> None:
    search = Search.resume(begun.folder)
    begun.extend(99)
    assert search.plan().num_samples == 99
