"""Rows of several trials laid end to end, without padding: which tokens are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rankloom.tokens import IGNORED

# Below a dozen rows MKL multiplies in another order than above, and a result's last bit would depend on how many
# tokens other trials brought (measured in float32: 2 to 11 rows differ, 12 to 300 never; docs/log.md).
MIN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `end` of the pack."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.end - self.start

    @property
    def slice(self) -> slice:
        """The span as an index."""
        return slice(self.start, self.end)


@dataclass(frozen=True, slots=True)
class Layout:
    """One pack.

    Attributes:
        input_ids: int64 [1, tokens].
        position_ids: int64 [1, tokens]; they begin anew in each row.
        rows: The tokens of each row, in the order given; filler that belongs to nobody may follow as one more.
        owners: The tokens of each owner's rows, in the order given.
        targets: Of each given row, the positions in the pack whose next token carries loss, and that token: int64 [n].
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    rows: tuple[Span, ...]
    owners: tuple[Span, ...]
    targets: tuple[tuple[torch.Tensor, torch.Tensor], ...]


Row = tuple[Sequence[int], Sequence[int]]  # input_ids and labels


def lay_out(owners: Sequence[Sequence[Row]], device: torch.device) -> Layout:
    """Lay the rows of each owner end to end.

    Args:
        owners: Each owner's rows; a row is token ids and labels of equal length, -100 carrying no loss.
        device: Where the tensors go.

    Returns:
        The pack.
    """
    ids: list[int] = []
    positions: list[int] = []
    rows, spans, targets = [], [], []
    for owned in owners:
        first = len(ids)
        for row_ids, labels in owned:
            start = len(ids)
            ids += row_ids
            positions += range(len(row_ids))
            rows.append(Span(start, len(ids)))
            at = [index for index in range(len(labels) - 1) if labels[index + 1] != IGNORED]
            targets.append(([start + index for index in at], [labels[index + 1] for index in at]))
        spans.append(Span(first, len(ids)))
    if (missing := MIN_TOKENS - len(ids)) > 0:
        rows.append(Span(len(ids), MIN_TOKENS))
        ids += [0] * missing
        positions += range(missing)
    return Layout(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        rows=tuple(rows),
        owners=tuple(spans),
        targets=tuple(
            (torch.tensor(at, dtype=torch.long, device=device), torch.tensor(to, dtype=torch.long, device=device))
            for at, to in targets
        ),
    )
