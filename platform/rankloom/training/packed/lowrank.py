"""The low-rank paths of several adapters over one frozen layer, forward and backward.

Each adapter sees its own tokens only: y[own] += scaling · dropout(x[own]) Aᵀ Bᵀ (LoRA, arXiv:2106.09685, equation 3).
The base's layer is not touched: a forward hook listens to its input and adds to its output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rankloom.training.packed.grouped import Grouped, Places, Stack
from rankloom.training.packed.layout import Span


@dataclass(frozen=True, slots=True)
class LowRank:
    """One adapter's factors in one layer, as views into its trial's storage.

    Attributes:
        a: [r, in_features], in the dtype of the products.
        b: [out_features, r], in the dtype of the products.
        grad_a: fp32 [r, in_features]; backward adds to it.
        grad_b: fp32 [out_features, r]; backward adds to it.
        scaling: alpha / r, or alpha / sqrt(r) with rsLoRA.
    """

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class Wearer:
    """Tokens that wear an adapter.

    Attributes:
        span: Its tokens.
        factors: The adapter, by qualified name of the layer.
        dropout: Probability that an input element is dropped; 0 in evaluation.
        seed: Of the dropout masks: the same seed and layer give the same mask, whoever else is in the pack and however
            often the layer runs (activations may be computed again in the backward pass).
    """

    span: Span
    factors: dict[str, LowRank]
    dropout: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    span: Span
    factors: LowRank
    keep: torch.Tensor | None  # bool [tokens, in_features]
    gain: float  # of what is kept


class LowRankPaths:
    """Forward hooks on the layers of a base, which add the low-rank paths of whoever wears an adapter."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str], dtype: torch.dtype, *, grouped: bool) -> None:
        """Hook the layers.

        Args:
            model: The frozen base.
            names: Qualified names of linear layers (Linear, Conv1D, Linear4bit, Linear8bitLt).
            dtype: dtype of the low-rank products.
            grouped: Whether they run batched over the adapters, or one adapter after the other.
        """
        self._dtype = dtype
        self._grouped = grouped
        self._stack: Stack | None = None
        self._places: dict[tuple[int, ...], Places] = {}
        self._wearers: tuple[Wearer, ...] = ()
        self._anchor = torch.zeros((), requires_grad=True, device=next(model.parameters()).device)
        # Projections of one input (q, k, v; gate, up) share its cast.
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        self._handles = [
            model.get_submodule(name).register_forward_hook(self._hook(name, index)) for index, name in enumerate(names)
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def worn(self, wearers: Sequence[Wearer]) -> Iterator[None]:
        """Let these tokens wear these adapters for a while; the backward pass belongs inside."""
        self._wearers = tuple(wearers)
        if self._grouped and wearers:
            self._stack = Stack(wearers)
            self._stack.fill()
        try:
            yield
            if self._stack is not None:
                self._stack.hand_out()
        finally:
            self._wearers, self._last, self._stack = (), None, None
            self._places.clear()

    def _hook(self, name: str, index: int) -> Any:
        def add(module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            wearers = [wearer for wearer in self._wearers if name in wearer.factors]
            if not wearers:
                return None
            x = args[0]
            result: torch.Tensor
            with torch.autocast(x.device.type, enabled=False):  # these products have a dtype of their own
                if self._stack is not None:
                    result = self._together(self._stack, name, index, x, output)
                else:
                    parts = [self._part(wearer, name, index, x) for wearer in wearers]
                    result = _add_slot_by_slot(self._anchor, x, self._cast(x), output, parts)
            return result

        return add

    def _together(self, stack: Stack, name: str, index: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        layer = stack.layer(name)
        assert layer is not None
        numbers = tuple(layer[0])
        wearers = [self._wearers[number] for number in numbers]
        if numbers not in self._places:
            self._places[numbers] = Places(wearers, x.device)
        keep = None
        if any(wearer.dropout for wearer in wearers):
            keep = torch.ones(len(wearers), max(w.span.length for w in wearers), x.shape[-1], device=x.device)
            for place, wearer in enumerate(wearers):
                part = self._part(wearer, name, index, x)
                if part.keep is not None:
                    keep[place, : wearer.span.length] = part.keep * part.gain
            keep = keep.to(self._dtype)
        result: torch.Tensor = _add_grouped(self._anchor, x, self._cast(x), y, name, stack, self._places[numbers], keep)
        return result

    def _cast(self, x: torch.Tensor) -> torch.Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = (x, x.detach().to(self._dtype).reshape(-1, x.shape[-1]))
        return self._last[1]

    def _part(self, wearer: Wearer, name: str, index: int, x: torch.Tensor) -> _Part:
        keep, gain = None, 1.0
        if wearer.dropout:
            generator = torch.Generator(device=x.device).manual_seed((wearer.seed * 1_000_003 + index) % 2**63)
            shape = (wearer.span.length, x.shape[-1])
            keep = torch.rand(shape, generator=generator, device=x.device) >= wearer.dropout
            gain = 1.0 / (1.0 - wearer.dropout)
        return _Part(wearer.span, wearer.factors[name], keep, gain)


class _SlotBySlot(torch.autograd.Function):
    """Adds each adapter's path, one adapter after the other; exact products of its own tokens alone."""

    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, x: torch.Tensor, cast: torch.Tensor, y: torch.Tensor, parts: list[_Part]
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
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
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


_add_slot_by_slot: Any = _SlotBySlot.apply
_add_grouped: Any = Grouped.apply


def product_dtype(device: torch.device, compute_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the low-rank products: on a CPU fp32, as the casts cost more than bfloat16 saves there."""
    return torch.float32 if device.type == "cpu" else compute_dtype


def _dropped(x: torch.Tensor, keep: torch.Tensor | None, gain: float) -> torch.Tensor:
    return x if keep is None else x * keep * gain


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scaling: float) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right, alpha=scaling)
    else:
        total.add_(torch.mm(left, right), alpha=scaling)
