from __future__ import annotations

import json
from typing import Any

import pytest

from rankloom.errors import DataError
from rankloom.evaluation.base import base_of
from rankloom.evaluation.rows import HeldOut, held_out_rows, question_of, whole_text
from rankloom_registry import Registry

USER, ANSWER = {"role": "user", "content": "the girl"}, {"role": "assistant", "content": "farm"}
AGAIN = {"role": "assistant", "content": "house"}


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"prompt": "a", "completion": "b"}, ("a", "b")),
        ({"prompt": [USER], "completion": [ANSWER]}, ([USER], "farm")),
        ({"prompt": [USER], "completion": [ANSWER, USER, AGAIN]}, ([USER, ANSWER, USER], "house")),
        ({"prompt": [USER], "completion": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, None),
        ({"messages": [USER, ANSWER, USER, AGAIN]}, ([USER, ANSWER, USER], "house")),
        ({"messages": [ANSWER, USER]}, None),
        ({"messages": [ANSWER]}, None),
        ({"text": "a"}, None),
    ],
)
def test_the_question_is_all_that_stands_before_the_last_answer(row: dict[str, Any], question: Any) -> None:
    assert question_of(row) == question


def test_a_row_without_a_question_is_read_as_a_whole() -> None:
    assert whole_text({"text": "a"}) == "a"
    assert whole_text({"messages": [ANSWER, USER]}) == "assistant: farm\n\nuser: the girl"
    assert whole_text({"prompt": [USER], "completion": [{"role": "assistant", "content": None}]}) == (
        "user: the girl\n\nassistant: "
    )


def split_of(world: Any, rows: list[dict[str, str]] | None = None) -> HeldOut:
    """What is read back of a search's held-out rows; `rows` takes their place, without their tokens."""
    if rows is not None:
        world.eval_rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    registry = Registry.open(world.registry)
    adapter = registry.adapter(world.adapters[0])
    return held_out_rows(registry, adapter, None, base_of(registry, adapter))


def test_characters_that_some_take_for_the_end_of_a_line_are_text(world: Any) -> None:
    rows = [json.loads(line) for line in world.eval_rows.read_text().splitlines()]
    rows[3]["prompt"] += "\x85 \u2028 \u2029"
    assert split_of(world, rows).rows == rows


def test_a_split_without_its_text_asks_for_a_dataset(world: Any) -> None:
    lines = world.eval_rows.read_text()
    world.eval_rows.write_text(lines + lines)
    with pytest.raises(DataError, match=r"tokens of 12 rows, and text of 24.*give --dataset FILE"):
        split_of(world)
    world.eval_rows.unlink()
    with pytest.raises(DataError, match=r"held-out split of 'negation' is not in .*give --dataset FILE"):
        split_of(world)


def test_what_max_length_cuts_is_counted(world: Any, tmp_path: Any) -> None:
    whole, cut = {"prompt": "the girl", "completion": "boy"}, {"prompt": "the girl", "completion": "boy " * 100}
    without = {"prompt": "the girl " * 50, "completion": "boy"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (whole, without, cut, cut)))
    registry = Registry.open(world.registry)
    adapter = registry.adapter(world.adapters[0])
    found = held_out_rows(registry, adapter, str(tmp_path / "rows.jsonl"), base_of(registry, adapter))
    assert found.rows == [whole, cut, cut] and (found.cut, found.dropped) == ((False, True, True), 1)
    assert found.to_dict() == {
        "source": str(tmp_path / "rows.jsonl"),
        "sha256": found.sha256,
        "rows": 3,
        "max_length": found.max_length,
        "cut_rows": 2,
        "dropped_rows": 1,
    }
    assert found.max_length == max(map(len, found.tokens["input_ids"]))
    first = found.first(2)
    assert (first.to_dict()["rows"], first.to_dict()["cut_rows"]) == (2, 1)


def test_what_a_search_cut_of_its_held_out_rows_is_counted(world: Any) -> None:
    rows = [json.loads(line) for line in world.eval_rows.read_text().splitlines()]
    every = split_of(world)
    assert every.cut == (False,) * 12 and every.dropped == 0
    found = split_of(world, [{"prompt": "the girl " * 50, "completion": "boy"}, *rows])
    assert found.rows == rows and found.dropped == 1
