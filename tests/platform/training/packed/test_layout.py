from __future__ import annotations

import pytest
import torch

from rankloom.training.packed.layout import MIN_TOKENS, Row, Span, lay_out

CPU = torch.device("cpu")


def row(start: int, length: int, prompt: int = 1) -> Row:
    ids = list(range(start, start + length))
    return ids, [-100] * prompt + ids[prompt:]


def test_rows_lie_end_to_end() -> None:
    layout = lay_out([[row(10, 7, prompt=3), row(20, 4)], [row(30, 9)]], CPU)
    assert layout.input_ids.tolist() == [[*range(10, 17), *range(20, 24), *range(30, 39)]]
    assert layout.position_ids.tolist() == [[*range(7), *range(4), *range(9)]]
    assert layout.rows == (Span(0, 7), Span(7, 11), Span(11, 20))
    assert layout.owners == (Span(0, 11), Span(11, 20))
    assert [(at.tolist(), to.tolist()) for at, to in layout.targets] == [
        ([2, 3, 4, 5], [13, 14, 15, 16]),  # the last token of a prompt predicts the first of its completion
        ([7, 8, 9], [21, 22, 23]),  # a row's last token predicts nothing of the next row
        ([*range(11, 19)], [*range(31, 39)]),
    ]


def test_a_small_pack_is_filled_up_by_nobody() -> None:
    layout = lay_out([[row(10, 5)]], CPU)
    assert layout.input_ids.shape == layout.position_ids.shape == (1, MIN_TOKENS)
    assert layout.rows == (Span(0, 5), Span(5, MIN_TOKENS))
    assert layout.owners == (Span(0, 5),) and len(layout.targets) == 1
    assert layout.position_ids[0, 5:].tolist() == list(range(MIN_TOKENS - 5))
    full = lay_out([[row(10, MIN_TOKENS)]], CPU)
    assert full.rows == full.owners == (Span(0, MIN_TOKENS),)


@pytest.mark.parametrize("short", [row(10, 1), row(10, 4, prompt=4)], ids=["one token", "no loss"])
def test_a_row_without_loss_has_no_targets(short: Row) -> None:
    at, to = lay_out([[short, row(20, 20)]], CPU).targets[0]
    assert at.dtype == to.dtype == torch.int64 and at.shape == to.shape == (0,)
