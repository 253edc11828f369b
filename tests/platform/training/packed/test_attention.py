from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

from rankloom.training.packed.attention import attending, packed_attention
from rankloom.training.packed.layout import Span

HEADS, HEAD_DIM, LENGTHS = 4, 8, (13, 1, 6, 6, 6, 13)


@pytest.mark.parametrize("window", [None, 1, 4, 6, 64])
@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("scaling", [None, 0.5])
def test_each_row_attends_as_it_would_alone(window: int | None, key_value_heads: int, scaling: float | None) -> None:
    torch.manual_seed(0)
    ends = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    rows = tuple(Span(start, end) for start, end in pairwise(ends))
    query = torch.randn(1, HEADS, ends[-1], HEAD_DIM, requires_grad=True)
    key, value = (torch.randn(1, key_value_heads, ends[-1], HEAD_DIM, requires_grad=True) for _ in range(2))
    with attending(rows):
        packed, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling, sliding_window=window)
    module: Any = SimpleNamespace(num_key_value_groups=HEADS // key_value_heads, training=False)
    apart = []
    for row in rows:
        age = torch.arange(row.length)[:, None] - torch.arange(row.length)
        seen = (age >= 0) & (age < (window or row.length))
        mask = torch.zeros(row.length, row.length).masked_fill(~seen, -torch.inf)[None, None]
        own = (tensor[:, :, row.slice] for tensor in (query, key, value))
        apart.append(eager_attention_forward(module, *own, mask, scaling or HEAD_DIM**-0.5)[0])
    alone = torch.cat(apart, dim=1)
    torch.testing.assert_close(packed, alone)
    weight = torch.randn_like(alone)
    found, expected = (torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in (packed, alone))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("length", [7, 96, 300])
def test_neighbours_of_one_length_share_a_kernel_and_not_a_bit(length: int) -> None:
    torch.manual_seed(0)
    states = [torch.randn(1, 9, 5 * length, 64, requires_grad=True), *(torch.randn(1, 3, 5 * length, 64) for _ in "kv")]
    rows = tuple(Span(at * length, (at + 1) * length) for at in range(5))
    with attending(rows):
        together, _ = packed_attention(torch.nn.Identity(), *states, None)
    (gradient,) = torch.autograd.grad(together.sum(), states[0])
    for row in rows:
        own = [state.detach()[:, :, row.slice].requires_grad_() for state in states]
        with attending((Span(0, length),)):
            alone, _ = packed_attention(torch.nn.Identity(), *own, None)
        assert torch.equal(together[:, row.slice], alone)
        assert torch.equal(gradient[:, :, row.slice], torch.autograd.grad(alone.sum(), own[0])[0])


@pytest.mark.parametrize(
    "option", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}], ids=lambda option: next(iter(option))
)
def test_scores_that_it_does_not_know_are_refused(option: dict[str, Any]) -> None:
    states = torch.zeros(1, 4, 3, 8)
    with attending((Span(0, 3),)), pytest.raises(ValueError, match="neither softcap nor attention sinks"):
        packed_attention(torch.nn.Identity(), states, states, states, None, **option)


def test_rows_are_those_of_the_innermost_pack() -> None:
    states = torch.randn(1, 1, 4, 8)

    def attended() -> torch.Tensor:
        return packed_attention(torch.nn.Identity(), states, states, states, None)[0]

    with attending((Span(0, 4),)):
        whole = attended()
        with attending((Span(0, 2), Span(2, 4))):
            assert not torch.equal(attended(), whole)
        assert torch.equal(attended(), whole)
