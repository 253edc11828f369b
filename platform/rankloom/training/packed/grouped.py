"""Low-rank paths of several adapters in batched products: two a layer, however many adapters there are.

Adapters are padded with zeros to a common rank, which changes nothing: the padding's products are zero, and its
gradients are left where they are. Sums run in another order than one adapter at a time, so the last bits differ. For
GPUs, where the time to launch hundreds of small products would be longer than the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rankloom.training.packed.factors import LowRank, Wearer


class Stack:
    """The adapters of some wearers, layer by layer in one padded tensor each."""

    def __init__(self, wearers: Sequence[Wearer]) -> None:
        """Make the tensors; `fill` copies the adapters in."""
        self._members: dict[str, list[tuple[int, LowRank]]] = {}
        for number, wearer in enumerate(wearers):
            for name, factors in wearer.factors.items():
                self._members.setdefault(name, []).append((number, factors))
        self._a: dict[str, torch.Tensor] = {}
        self._b: dict[str, torch.Tensor] = {}
        self._scaling: dict[str, torch.Tensor] = {}
        for name, members in self._members.items():
            like = members[0][1]
            r = max(factors.a.shape[0] for _, factors in members)
            self._a[name] = like.a.new_zeros(len(members), r, like.a.shape[1])
            self._b[name] = like.b.new_zeros(len(members), like.b.shape[0], r)
            self._scaling[name] = torch.tensor([f.scaling for _, f in members], device=like.a.device)[:, None, None]
        self._gradients: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def fill(self) -> None:
        """Copy the adapters as they are now."""
        into, source = [], []
        for name, members in self._members.items():
            for place, (_, factors) in enumerate(members):
                r = factors.a.shape[0]
                into += [self._a[name][place, :r], self._b[name][place, :, :r]]
                source += [factors.a, factors.b]
        torch._foreach_copy_(into, source)

    def layer(self, name: str) -> tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return a layer's wearers by number, a [k, r, in], b [k, out, r] and scaling [k, 1, 1], if it has any."""
        if name not in self._members:
            return None
        return [number for number, _ in self._members[name]], self._a[name], self._b[name], self._scaling[name]

    def keep(self, name: str, grad_a: torch.Tensor, grad_b: torch.Tensor) -> None:
        """Take a layer's gradients, shaped like its tensors."""
        self._gradients[name] = grad_a.float(), grad_b.float()

    def hand_out(self) -> None:
        """Add the gradients to each adapter's own."""
        into, source = [], []
        for name, (grad_a, grad_b) in self._gradients.items():
            for place, (_, factors) in enumerate(self._members[name]):
                r = factors.a.shape[0]
                into += [factors.grad_a, factors.grad_b]
                source += [grad_a[place, :r], grad_b[place, :, :r]]
        if into:
            torch._foreach_add_(into, source)
        self._gradients.clear()


class Places:
    """Where the tokens of some wearers lie, padded to the longest."""

    def __init__(self, wearers: Sequence[Wearer], device: torch.device) -> None:
        """Count the tokens; where all have as many and follow each other, nothing is copied."""
        spans = [wearer.span for wearer in wearers]
        self._shape = len(spans), max(span.length for span in spans)
        rows, width = self._shape
        self._span: slice | None = None
        if all(span.length == width and span.start == spans[0].start + k * width for k, span in enumerate(spans)):
            self._span = slice(spans[0].start, spans[0].start + rows * width)
            return
        padded = [[*range(span.start, span.end)] + [span.start] * (width - span.length) for span in spans]
        self._gather = torch.tensor(padded, device=device)
        real = [k * width + at for k, span in enumerate(spans) for at in range(span.length)]
        self._real = torch.tensor(real, device=device)
        self._tokens = torch.tensor([at for span in spans for at in range(span.start, span.end)], device=device)
        lengths = torch.tensor([span.length for span in spans], device=device)
        self._padding = (torch.arange(width, device=device)[None] >= lengths[:, None])[:, :, None]

    def take(self, tokens: torch.Tensor, *, zeros: bool) -> torch.Tensor:
        """Return [wearers, longest, width] of [tokens, width]; padding is zero, or some token of the same wearer."""
        if self._span is not None:
            return tokens[self._span].view(*self._shape, -1)
        taken = tokens[self._gather]
        return taken.masked_fill_(self._padding, 0.0) if zeros else taken

    def add(self, tokens: torch.Tensor, values: torch.Tensor) -> None:
        """Add [wearers, longest, width] to [tokens, width], without the padding."""
        flat = values.reshape(-1, values.shape[-1])
        if self._span is not None:
            tokens[self._span] += flat
        else:
            tokens.index_add_(0, self._tokens, flat.index_select(0, self._real).to(tokens.dtype))


class Grouped(torch.autograd.Function):
    """Adds all adapters' paths of a layer at once."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        anchor: torch.Tensor,
        x: torch.Tensor,
        cast: torch.Tensor,
        y: torch.Tensor,
        name: str,
        stack: Stack,
        places: Places,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        # keep: [wearers, longest, in_features], 0 or 1 / (1 - dropout), in the compute dtype.
        layer = stack.layer(name)
        assert layer is not None
        _, a, b, scaling = layer
        own = places.take(cast, zeros=False)
        own = own if keep is None else own * keep
        h = torch.bmm(own, a.transpose(1, 2)) * scaling.to(a.dtype)
        out = y.reshape(-1, y.shape[-1]).clone()
        places.add(out, torch.bmm(h, b.transpose(1, 2)).to(out.dtype))
        ctx.layer = name, stack, places
        ctx.input = (x.dtype, x.shape)
        ctx.save_for_backward(cast, h, keep)
        return out.view(y.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # noqa: D102
        cast, h, keep = ctx.saved_tensors
        name, stack, places = ctx.layer
        dtype, shape = ctx.input
        _, a, b, scaling = stack.layer(name)
        own_grad = places.take(grad.reshape(-1, grad.shape[-1]).to(cast.dtype), zeros=True)
        grad_h = torch.bmm(own_grad, b) * scaling.to(b.dtype)
        own = places.take(cast, zeros=False)
        own = own if keep is None else own * keep
        stack.keep(name, torch.bmm(grad_h.transpose(1, 2), own), torch.bmm(own_grad.transpose(1, 2), h))
        grad_x = None
        if ctx.needs_input_grad[1]:
            back = torch.bmm(grad_h, a)
            grad_x = torch.zeros_like(cast)
            places.add(grad_x, back if keep is None else back * keep)
            grad_x = grad_x.to(dtype).view(shape)
        return None, grad_x, None, grad, None, None, None, None
