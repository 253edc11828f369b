from __future__ import annotations

from dataclasses import replace

import pytest

from rankloom_dashboard.adapters.listing import rows, selection, title
from rankloom_registry import Registry


@pytest.mark.parametrize(
    ("wanted", "ticked", "selected"),
    [
        ([], [], []),
        ([], ["b", "a"], ["b", "a"]),
        (["a"], [], []),
        (["elsewhere", "a"], ["a"], ["elsewhere", "a"]),
        (["elsewhere", "a"], [], ["elsewhere"]),
        (["b", "elsewhere"], ["a", "b"], ["b", "elsewhere", "a"]),
    ],
)
def test_what_stands_on_other_pages_stays_selected(wanted: list[str], ticked: list[str], selected: list[str]) -> None:
    assert selection(wanted, ["a", "b", "c"], ticked) == selected


def test_rows_hold_what_the_table_shows_and_cut_what_is_long(made_once) -> None:
    with Registry.open(made_once.path) as registry:
        best = registry.adapter(made_once.best)
    (row,) = rows([replace(best, target_modules="x" * 1_000_000, base_identity="y" * 1_000_000)])
    assert row["adapter"] == made_once.best
    assert (row["name"], row["trial"], row["aliases"], row["files"]) == ("lora-tiny-5", 5, ["champion"], ["available"])
    assert all(len(str(value)) < 300 for value in row.values())
    assert "1,000,000 characters" in row["target_modules"]
    assert title(best) == "lora-tiny-5 #5 @champion"
    assert title(replace(best, trial_number=None, aliases=())) == "lora-tiny-5"
