"""Which rows a trial trains on at which step: a function of its seed alone, and the same as transformers' Trainer."""

from __future__ import annotations

from functools import lru_cache

import torch


class Batches:
    """A trial's data order.

    Each epoch is a permutation seeded by seed + epoch, cut into batches; `accumulation` batches make a step, fewer at
    an epoch's end (transformers' `Trainer` with accelerate's `SeedableRandomSampler`).
    """

    def __init__(self, *, rows: int, batch_size: int, accumulation: int, seed: int) -> None:
        """Describe the order; nothing is drawn yet."""
        self._rows = rows
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._seed = seed
        batches = -(-rows // batch_size)
        self.steps_per_epoch = -(-batches // accumulation)

    def of_step(self, step: int) -> list[list[int]]:
        """Return the row numbers of each batch of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _permutation(self._rows, self._seed + epoch)
        size = self._batch_size * self._accumulation
        window = order[place * size : (place + 1) * size]
        return [list(window[at : at + self._batch_size]) for at in range(0, len(window), self._batch_size)]


@lru_cache(maxsize=256)
def _permutation(rows: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist())
