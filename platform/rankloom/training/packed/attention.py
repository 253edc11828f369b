"""Causal attention within each row of a pack, plugged into transformers' attention interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from rankloom.training.packed.layout import Span

NAME = "rankloom_packed"

# transformers calls an attention function without a place for what the caller knows; a lane is one process with one
# pack in hand, and its backward may run on another thread.
_rows: tuple[Span, ...] = ()


@contextmanager
def attending(rows: tuple[Span, ...]) -> Iterator[None]:
    """Let attention see these rows for a while; backward passes that recompute belong inside."""
    global _rows
    before, _rows = _rows, rows
    try:
        yield
    finally:
        _rows = before


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row; no token sees another row's, so no trial sees another's.

    Args:
        module: The attention layer.
        query: [1, heads, tokens, head_dim].
        key: [1, key_value_heads, tokens, head_dim].
        value: [1, key_value_heads, tokens, head_dim].
        attention_mask: Ignored; the rows say everything.
        scaling: Of the scores; 1/sqrt(head_dim) if None.
        sliding_window: Tokens that a token sees, itself included; all before it if None.
        **kwargs: What else transformers passes; dropout of the scores is the base's own, and off (see `resident`).

    Returns:
        [1, tokens, heads, head_dim], and None for the weights.

    Raises:
        ValueError: The model softcaps its scores, which this attention does not do.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("packed attention has neither softcap nor attention sinks")
    runs = _runs(_rows)
    widths = [count * length for count, length in runs]
    parts = zip(*(tensor.split(widths, dim=2) for tensor in (query, key, value)), strict=True)
    attended = []
    for (count, length), part in zip(runs, parts, strict=True):
        # [1, heads, count · length, head_dim] to [count, heads, length, head_dim]
        q, k, v = (tensor.unflatten(2, (count, length)).squeeze(0).transpose(0, 1) for tensor in part)
        found = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_window(q, sliding_window),
            is_causal=sliding_window is None or length <= sliding_window,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        attended.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).unsqueeze(0), None


def _runs(rows: tuple[Span, ...]) -> list[tuple[int, int]]:
    """Return (rows, length) of each run of neighbours of one length: what one kernel can attend to."""
    return [(len(list(run)), length) for length, run in groupby(row.length for row in rows)]


def _window(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    length = query.shape[2]
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return ones.tril() & ones.triu(1 - window)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
