"""The low-rank paths of several adapters over one frozen layer, forward and backward.

Each adapter sees its own tokens only: y[own] += scaling · dropout(x[own]) Aᵀ Bᵀ (LoRA, arXiv:2106.09685, equation 3).
The base's layer is not touched: a forward hook listens to its input and adds to its output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rankloom.training.packed.factors import Wearer
from rankloom.training.packed.grouped import Grouped, Places, Stack
from rankloom.training.packed.slot_by_slot import Part, SlotBySlot

_add_slot_by_slot: Any = SlotBySlot.apply
_add_grouped: Any = Grouped.apply


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

    def _part(self, wearer: Wearer, name: str, index: int, x: torch.Tensor) -> Part:
        keep, gain = None, 1.0
        if wearer.dropout:
            generator = torch.Generator(device=x.device).manual_seed((wearer.seed * 1_000_003 + index) % 2**63)
            shape = (wearer.span.length, x.shape[-1])
            keep = torch.rand(shape, generator=generator, device=x.device) >= wearer.dropout
            gain = 1.0 / (1.0 - wearer.dropout)
        return Part(wearer.span, wearer.factors[name], keep, gain)
