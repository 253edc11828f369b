"""One forward and backward through the frozen base for the rows of all slots, and the same for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear

from rankloom.training.evaluation import autocast
from rankloom.training.packed.attention import NAME, attending
from rankloom.training.packed.factors import product_dtype
from rankloom.training.packed.layout import Layout, Row, lay_out
from rankloom.training.packed.lowrank import LowRankPaths
from rankloom.training.packed.slot import Slot
from rankloom.training.resident import ResidentBase
from rankloom_spaces.targets import linear_module_names

# Logits of so many tokens are held at once; a row's chunks begin at its first token, whoever else is in the pack.
HEAD_TOKENS = 512


class PackedModel:
    """The resident base with slots over it; the base's modules stay as they are, hooks add what slots wear."""

    def __init__(self, base: ResidentBase, *, grouped: bool | None = None) -> None:
        """Hook the base's linear layers and its attention; `close` takes everything off again.

        Args:
            base: The resident base.
            grouped: Whether low-rank products run batched over the slots; unset, on a GPU. On a CPU they run slot by
                slot: they are no slower there, and each slot's bits are those that it would have alone.
        """
        self.base = base
        self._device = base.model.device
        self._body = base.model.base_model
        self._head = base.model.get_output_embeddings()
        self._attention = base.model.config._attn_implementation
        self._paths = LowRankPaths(
            base.model,
            linear_module_names(base.leaf_modules),
            product_dtype(self._device, base.compute_dtype),
            grouped=self._device.type == "cuda" if grouped is None else grouped,
        )
        base.model.set_attn_implementation(NAME)

    def close(self) -> None:
        """Leave the base as it was."""
        self._paths.remove()
        self.base.model.set_attn_implementation(self._attention)

    def train(self, work: Sequence[tuple[Slot, Sequence[Row], int]]) -> list[torch.Tensor]:
        """Add one batch's gradient to each slot.

        Args:
            work: Slots with their rows, and the number of targets of the whole step that the batch is part of.

        Returns:
            Each slot's summed loss over that number: fp32 scalars on the device.
        """
        layout = lay_out([rows for _, rows, _ in work], self._device)
        wearers = [slot.wearer(span, training=True) for (slot, _, _), span in zip(work, layout.owners, strict=True)]
        self.base.model.train()
        with attending(layout.rows), self._paths.worn(wearers):
            hidden = self._hidden(layout)
            gradient = torch.zeros_like(hidden)
            weight = self._head_weight()
            losses, row = [], 0
            for _, rows, targets in work:
                loss = torch.zeros((), device=self._device)
                for positions, tokens in layout.targets[row : row + len(rows)]:
                    # Logits are freed chunk by chunk: those of all rows at once made packing slower than no packing.
                    for at, to in zip(positions.split(HEAD_TOKENS), tokens.split(HEAD_TOKENS), strict=True):
                        nll, grad = self._head_backward(hidden.detach()[0, at], to, weight)
                        loss += nll / targets
                        gradient[0, at] = (grad / targets).to(gradient.dtype)
                losses.append(loss)
                row += len(rows)
            hidden.backward(gradient)
        return losses

    def nll(self, work: Sequence[tuple[Slot | None, Sequence[Row]]]) -> list[list[float]]:
        """Measure the summed loss of each row, nats, with each slot's adapter as it is; None is the bare base."""
        layout = lay_out([rows for _, rows in work], self._device)
        wearers = [
            slot.wearer(span, training=False)
            for (slot, _), span in zip(work, layout.owners, strict=True)
            if slot is not None
        ]
        self.base.model.eval()
        sums = []
        with torch.no_grad(), attending(layout.rows), self._paths.worn(wearers):
            hidden = self._hidden(layout)
            weight = self._head_weight()
            for positions, tokens in layout.targets:
                total = torch.zeros((), device=self._device)
                for at, to in zip(positions.split(HEAD_TOKENS), tokens.split(HEAD_TOKENS), strict=True):
                    logits = self._logits(hidden[0, at], weight)
                    total += (torch.logsumexp(logits, 1) - logits.gather(1, to[:, None])[:, 0]).sum()
                sums.append(total)
        values = iter(torch.stack(sums).tolist())
        return [[next(values) for _ in rows] for _, rows in work]

    @torch.no_grad()
    def hidden_of(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Return the bare base's last hidden states of each row, [tokens, hidden_size] fp32, all rows in one pack."""
        layout = lay_out([rows], self._device)
        self.base.model.eval()
        with attending(layout.rows):
            hidden = self._hidden(layout)[0].float()
        return [hidden[span.slice] for span in layout.rows[: len(rows)]]

    def _hidden(self, layout: Layout) -> torch.Tensor:
        """Run the base up to its head: [1, tokens, hidden_size]."""
        with autocast(self._device, self.base.compute_dtype):
            output: Any = self._body(input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _head_weight(self) -> torch.Tensor:
        # Cast once a pass: under autocast, every row's product would cast the largest matrix of the model anew.
        weight: torch.Tensor = self._head.weight.detach().to(self.base.compute_dtype)
        return weight

    def _logits(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        bias = getattr(self._head, "bias", None)
        logits: torch.Tensor = linear(hidden.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
        return logits.float()

    @torch.no_grad()
    def _head_backward(
        self, hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed cross entropy of some tokens, and its gradient by their hidden states, fp32."""
        logits = self._logits(hidden, weight)
        norm = torch.logsumexp(logits, 1, keepdim=True)
        nll = (norm - logits.gather(1, targets[:, None])).sum()
        grad = logits.sub_(norm).exp_()
        grad.scatter_add_(1, targets[:, None], grad.new_full((len(targets), 1), -1.0))
        return nll, torch.mm(grad.to(weight.dtype), weight).float()
