from __future__ import annotations

from pathlib import Path

import pytest

from rankloom_dashboard.charts.similarity import draw_similarity, similarity_info
from rankloom_registry import Registry, compare_weights


@pytest.fixture
def folders(made_once) -> list[Path]:
    with Registry.open(made_once.path) as registry:
        return [registry.checkout(registry.adapter(one)) for one in (made_once.best, made_once.second, made_once.prior)]


def test_the_matrix_is_symmetric_and_each_adapter_is_like_itself(folders) -> None:
    pairs = {(0, 1): compare_weights(folders[0], folders[1]), (1, 2): compare_weights(folders[1], folders[2])}
    info = similarity_info(["a", "b", "c"], pairs, "cosine")
    assert [info.values[place][place] for place in range(3)] == [1, 1, 1]
    assert info.values[0][1] == info.values[1][0] == pairs[0, 1].cosine
    assert info.values[0][2] is None and info.values[2][0] is None
    assert info.shared[0] == (None, 1, None)
    overlaps = similarity_info(["a", "b", "c"], pairs, "row_overlap")
    # Ranks of 16 and more fill the 4 dimensions of the room.
    assert overlaps.values[1][2] == pytest.approx(1)


def test_numbers_stand_in_the_cells_and_names_stay_text(folders) -> None:
    pairs = {(0, 1): compare_weights(folders[0], folders[0])}
    drawn = draw_similarity(similarity_info(["<b>x</b>", "y"], pairs, "cosine"))
    assert drawn.data[0].text[0][1] == "1.00"
    assert drawn.layout.xaxis.ticktext[0] == "&lt;b&gt;x&lt;/b&gt;"
    assert "<b>" not in drawn.data[0].customdata[0][1]
    empty = draw_similarity(similarity_info(["x", "y"], {}, "cosine"))
    assert empty.data[0].text[0][1] == "–"
