"""Low-rank paths of several adapters, one after the other: exact products of each one's own tokens alone.

What an adapter gives and learns does not depend on who else is in the pack, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rankloom.training.packed.factors import LowRank
from rankloom.training.packed.layout import Span


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens, the factors that they wear in one layer, and what is dropped of their inputs."""

    span: Span
    factors: LowRank
    keep: torch.Tensor | None  # bool [tokens, in_features]
    gain: float  # of what is kept


class SlotBySlot(torch.autograd.Function):
    """Adds each adapter's path to a layer's output."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, anchor: torch.Tensor, x: torch.Tensor, cast: torch.Tensor, y: torch.Tensor, parts: list[Part]
    ) -> torch.Tensor:
        # The anchor makes the result differentiable where neither the input nor the frozen layer is.
        if in_place := not y._is_view():
            ctx.mark_dirty(y)
        result = y if in_place else y.clone()
        out = result.view(-1, y.shape[-1])
        projected = []
        for part in parts:
            own = _dropped(cast[part.span.slice], part.keep, part.gain)
            h = torch.mm(own, part.factors.a.T)
            _add_product(out[part.span.slice], h, part.factors.b.T, part.factors.scaling)
            projected.append(h)
        # Masks go the way of all saved tensors, so that gradient checkpointing frees them too.
        ctx.parts = [(part.span, part.factors, part.gain) for part in parts]
        ctx.input = (x.dtype, x.shape)
        ctx.save_for_backward(cast, *projected, *(part.keep for part in parts))
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # noqa: D102
        cast, *saved = ctx.saved_tensors
        projected, keeps = saved[: len(ctx.parts)], saved[len(ctx.parts) :]
        dtype, shape = ctx.input
        flat = grad.reshape(-1, grad.shape[-1]).to(cast.dtype)
        grad_x = torch.zeros_like(cast) if ctx.needs_input_grad[1] else None
        for (span, factors, gain), h, keep in zip(ctx.parts, projected, keeps, strict=True):
            own_grad = flat[span.slice]
            grad_h = torch.mm(own_grad, factors.b)
            _add_product(factors.grad_a, grad_h.T, _dropped(cast[span.slice], keep, gain), factors.scaling)
            _add_product(factors.grad_b, own_grad.T, h, factors.scaling)
            if grad_x is not None:
                back = grad_x[span.slice].addmm_(grad_h, factors.a, alpha=factors.scaling)
                if keep is not None:
                    back.mul_(keep).mul_(gain)
        return None, None if grad_x is None else grad_x.to(dtype).view(shape), None, grad, None


def _dropped(x: torch.Tensor, keep: torch.Tensor | None, gain: float) -> torch.Tensor:
    return x if keep is None else x * keep * gain


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scaling: float) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right, alpha=scaling)
    else:
        total.add_(torch.mm(left, right), alpha=scaling)
