"""Computes the merged tensors a block of rows at a time, in fp32, and rounds once to the base's dtype."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from rankloom.errors import MergeError
from rankloom.merging.changes import DTYPES, Change, LoraUpdate
from rankloom.merging.fourbit import BLOCK, RoundTrip
from rankloom.merging.pen import Pen
from rankloom_registry.formats.safetensors import Layout, TensorSpan

# Blocks this small stay in the processor's cache through read, add, check and hash; a GPU wants them larger.
BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 16 << 20}
_COPY_BYTES = 1 << 20
# A matrix product gives the same bits block by block as at once only if blocks end where the BLAS kernel's tiles do.
_TILE_ROWS = 64


class Merger:
    """Writes the tensors of a base with their changes."""

    def __init__(self, weights: Any, round_trip: RoundTrip | None, device: torch.device) -> None:
        """Make a merger.

        Args:
            weights: The adapter's tensors.
            round_trip: How quantized tensors get their values; None if there are none.
            device: Where to compute.
        """
        self._weights = weights
        self._round_trip = round_trip
        self._device = device
        self._scratch: dict[str, torch.Tensor] = {}
        # A mixture's experts take turns with the same few tensors.
        self._tensor = lru_cache(maxsize=4)(self._load)

    def write_file(self, path: Path, header: Layout | None, changes: dict[str, Change], pen: Pen) -> None:
        """Write one file of the base; only the bytes of changed tensors differ.

        Args:
            path: The file.
            header: Its header; None for a file without tensors.
            changes: What happens to the base's tensors.
            pen: Has the output's file open.
        """
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            if header is None:
                self._copy(file.fileno(), 0, path.stat().st_size, pen)
                return
            self._copy(file.fileno(), 0, header.data_start, pen)
            for name, span in header.tensors.items():
                change = changes.get(name)
                if change is None:
                    self._copy(file.fileno(), header.data_start + span.start, span.nbytes, pen)
                elif change.replaced_by is not None:
                    self._replace(name, change.replaced_by, DTYPES[span.dtype], pen)
                else:
                    for index, matrix in enumerate(self._matrices(file.fileno(), header, span, change.transposed, pen)):
                        update = change.updates[index] if change.updates else None
                        self._change(name, matrix, update, self._round_trip if change.quantized else None)

    def _copy(self, descriptor: int, start: int, size: int, pen: Pen) -> None:
        for offset in range(0, size, _COPY_BYTES):
            view = pen.borrow(min(_COPY_BYTES, size - offset))
            _read(descriptor, view, start + offset)
            pen.write(view)

    def _replace(self, name: str, source: str, dtype: torch.dtype, pen: Pen) -> None:
        tensor = self._weights.get_tensor(source).to(dtype).contiguous()
        _require_finite(name, tensor)
        _write_bytes(tensor, pen)

    def _matrices(self, descriptor: int, header: Layout, span: TensorSpan, transposed: bool, pen: Pen) -> Iterator[Any]:
        """The matrices of a tensor, which has one if it is not a stack of them."""
        shape, dtype = span.shape[-2:], DTYPES[span.dtype]
        size = math.prod(shape) * dtype.itemsize
        for start in range(header.data_start + span.start, header.data_start + span.end, size):
            if transposed:
                yield _Transposed(descriptor, start, shape, dtype, pen)
            else:
                yield _Straight(descriptor, start, shape, dtype, pen, BLOCK_BYTES[self._device.type])

    def _change(self, name: str, matrix: _Matrix, update: LoraUpdate | None, round_trip: RoundTrip | None) -> None:
        four_bit = None if round_trip is None else _FourBit(round_trip, matrix, self._device)
        sum_of = None if update is None else self._sum(update, matrix)
        for start, block in matrix.rows():
            merged = self._like("merged", block).copy_(block)
            if four_bit is not None:
                four_bit.restore(merged, start)
            if sum_of is not None:
                sum_of.add_to(merged, start, self._like("delta", block))
            block.copy_(merged)
            _require_finite(name, block)

    def _sum(self, update: LoraUpdate, matrix: _Matrix) -> _Sum:
        first = update.first_row
        a = self._tensor(update.lora_a)[update.expert * update.rank :][: update.rank]
        b = self._tensor(update.lora_b)[first : first + matrix.shape[0], update.expert :: update.experts].contiguous()
        magnitude = None if update.magnitude is None else self._tensor(update.magnitude)
        return _Sum(a, b, update.scale, magnitude, isinstance(matrix, _Transposed))

    def _load(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._weights.get_tensor(name)
        return tensor.to(self._device, torch.float32)

    def _like(self, use: str, block: torch.Tensor) -> torch.Tensor:
        """An fp32 tensor of a block's shape, in memory that is used over and over."""
        if use not in self._scratch or self._scratch[use].numel() < block.numel():
            self._scratch[use] = torch.empty(block.numel(), device=self._device)
        return self._scratch[use][: block.numel()].view(block.shape)


class _FourBit:
    """The values of a matrix after the round trip."""

    def __init__(self, round_trip: RoundTrip, matrix: _Matrix, device: torch.device) -> None:
        self._round_trip = round_trip
        self._columns = matrix.shape[1]
        self._whole = None
        if self._columns % BLOCK:
            self._whole = round_trip.whole(torch.cat([block.clone() for _, block in matrix.peek()]).to(device))
        else:
            largest = (round_trip.largest(block.to(device)) for _, block in matrix.peek())
            self._inverse, self._factors = round_trip.scales(largest)

    def restore(self, merged: torch.Tensor, start: int) -> None:
        if self._whole is not None:
            merged.copy_(self._whole[start : start + len(merged)])
            return
        part = slice(start * self._columns // BLOCK, (start + len(merged)) * self._columns // BLOCK)
        self._round_trip.restore(merged, self._inverse[part], self._factors[part])


class _Sum:
    """One update: adds itself to a block of rows, in the order of PEFT's operations, so that the bits are its own."""

    def __init__(
        self, a: torch.Tensor, b: torch.Tensor, scale: float, magnitude: torch.Tensor | None, transposed: bool
    ) -> None:
        # A power of two may be multiplied with before the product: no bit of it changes.
        exact = scale >= 1 and math.frexp(scale)[0] == 0.5
        self._a, self._b = a, b * scale if exact else b
        self._scale = 1.0 if exact else scale
        self._magnitude, self._transposed = magnitude, transposed

    def add_to(self, merged: torch.Tensor, start: int, delta: torch.Tensor) -> None:
        rows = slice(start, start + len(merged))
        torch.mm(self._b[rows], self._a, out=delta)
        if self._scale != 1:
            delta.mul_(self._scale)
        merged.add_(delta)
        if self._magnitude is not None:
            # In the base's own layout, because the order of a sum decides its last bit.
            lengths = torch.linalg.norm(merged.T.contiguous(), dim=0) if self._transposed else merged.norm(dim=1)
            merged.mul_((self._magnitude[rows] / lengths)[:, None])


class _Matrix(Protocol):
    """A matrix of the base, seen as (out, in)."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def peek(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Its blocks of rows, each with the number of its first; a block is valid until the next one is asked for."""
        ...

    def rows(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Its blocks of rows, to be changed in place: each is written when the next one is asked for."""
        ...


class _Straight:
    def __init__(
        self, descriptor: int, start: int, shape: tuple[int, ...], dtype: torch.dtype, pen: Pen, block: int
    ) -> None:
        self.shape = (shape[0], shape[1])
        self._descriptor, self._start, self._dtype, self._pen = descriptor, start, dtype, pen
        self._row = shape[1] * dtype.itemsize
        rows = block // max(self._row, 1)
        self._step = max(_TILE_ROWS, rows - rows % _TILE_ROWS)

    def peek(self) -> Iterator[tuple[int, torch.Tensor]]:
        buffer = memoryview(bytearray(min(self._step, self.shape[0]) * self._row))
        for start in range(0, self.shape[0], self._step):
            yield start, self._fill(buffer[: self._size(start)], start)

    def rows(self) -> Iterator[tuple[int, torch.Tensor]]:
        for start in range(0, self.shape[0], self._step):
            view = self._pen.borrow(self._size(start))
            yield start, self._fill(view, start)
            self._pen.write(view)

    def _size(self, start: int) -> int:
        return min(self._step, self.shape[0] - start) * self._row

    def _fill(self, view: memoryview, start: int) -> torch.Tensor:
        _read(self._descriptor, view, self._start + start * self._row)
        return torch.frombuffer(view, dtype=self._dtype).view(-1, self.shape[1])


class _Transposed:
    """Stored as (in, out): all of it is read at once, as each row of (out, in) lies scattered over it."""

    def __init__(self, descriptor: int, start: int, shape: tuple[int, ...], dtype: torch.dtype, pen: Pen) -> None:
        self.shape = (shape[1], shape[0])
        buffer = bytearray(math.prod(shape) * dtype.itemsize)
        _read(descriptor, memoryview(buffer), start)
        self._stored = torch.frombuffer(buffer, dtype=dtype).view(shape[0], shape[1])
        self._pen = pen
        rows = BLOCK_BYTES["cpu"] // (shape[0] * dtype.itemsize)
        self._step = max(_TILE_ROWS, rows - rows % _TILE_ROWS)

    def peek(self) -> Iterator[tuple[int, torch.Tensor]]:
        for start in range(0, self.shape[0], self._step):
            yield start, self._stored[:, start : start + self._step].T

    def rows(self) -> Iterator[tuple[int, torch.Tensor]]:
        yield from self.peek()
        _write_bytes(self._stored, self._pen)


def _read(descriptor: int, view: memoryview, start: int) -> None:
    done = 0
    while done < len(view):
        size = os.preadv(descriptor, [view[done:]], start + done)
        if size == 0:
            raise MergeError(f"the base must not change during a merge, but a file ends at byte {start + done} now")
        done += size


def _write_bytes(tensor: torch.Tensor, pen: Pen) -> None:
    data = tensor.view(-1).view(torch.uint8).numpy().data
    for start in range(0, len(data), _COPY_BYTES):
        view = pen.borrow(min(_COPY_BYTES, len(data) - start))
        view[:] = data[start : start + len(view)]
        pen.write(view)


def _require_finite(name: str, block: torch.Tensor) -> None:
    # NaN and Inf survive a sum, and a sum is three times faster than a look at each; it may overflow by itself.
    if not math.isfinite(block.sum().item()) and not block.isfinite().all():
        raise MergeError(f"{name} must be finite in {block.dtype} once merged; check the base and the adapter")
