"""A run folder belongs to one search from its first moment, and is gone again where the search never began."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rankloom import Search
from rankloom.errors import ModelError, SearchError
from rankloom.runs import LOCK
from rankloom.watch import Silence


class During(Silence):
    """Does something while a search is prepared."""

    def __init__(self, what: Callable[[], None]) -> None:
        self._what = what

    def say(self, message: str) -> None:
        self._what()


def doomed(folder: Path) -> Search:
    """A search without a base: its preparation fails."""
    return Search(str(folder / "nowhere"), "rows.jsonl", registry=folder / "registry.duckdb", name="one")


def test_a_search_that_is_being_prepared_keeps_its_folder_from_another_of_its_name(tmp_path: Path) -> None:
    rows = tmp_path / "registry.runs" / "one" / "data"
    seen: list[object] = []

    def begin_another() -> None:
        rows.mkdir()
        try:
            doomed(tmp_path).run()
        except (SearchError, ModelError) as error:
            seen.extend([str(error), rows.exists()])

    with pytest.raises(ModelError):
        doomed(tmp_path).run(During(begin_another))
    assert seen == [
        "another process runs the search 'one' now: wait until it ends, or end it with Ctrl-C",
        True,
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_a_search_left_that_never_began_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / "registry.runs" / "one"
    (left / "data").mkdir(parents=True)
    (left / "study.jsonl").touch()

    def look() -> None:
        assert [path.name for path in left.iterdir()] == [LOCK]

    with pytest.raises(ModelError):
        doomed(tmp_path).run(During(look))
    assert not left.exists()
