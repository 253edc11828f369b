"""Hashes a tensor by its values, whichever float format holds them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from rankloom_registry.errors import FingerprintError
from rankloom_registry.formats.safetensors import Layout, TensorSpan

# Large enough for what is done between two blocks, small enough to stay in the cache from reading to hashing.
BLOCK_BYTES = 1 << 20
SAMPLES = 16
SAMPLE_BYTES = 4096

_SAME_VALUES = frozenset({"F32", "BF16", "F16"})
_HALVES = frozenset({"BF16", "F16"})

Bytes = npt.NDArray[np.uint8]


def hash_tensor(path: Path, layout: Layout, name: str) -> str:
    """Hash a tensor's dtype, shape and bytes; BF16 and F16 as the float32 that holds the same values.

    Args:
        path: The file.
        layout: Its layout.
        name: The tensor.

    Returns:
        The BLAKE3 of `dtype | shape | bytes` in hexadecimal.

    Raises:
        FingerprintError: If the file ends before the tensor does.
    """
    span = layout.tensors[name]
    size = span.nbytes
    digest = blake3(_head(span))
    block = np.empty(min(BLOCK_BYTES, size), np.uint8)
    wide = np.empty(2 * len(block), np.uint8)
    with path.open("rb", buffering=0) as file:
        file.seek(layout.data_start + span.start)
        for start in range(0, size, BLOCK_BYTES):
            part = block[: min(BLOCK_BYTES, size - start)]
            _fill(file, part)
            digest.update(_widened(part, span.dtype, wide).data)
    return digest.hexdigest()


def sample_tensor(file: BinaryIO, layout: Layout, name: str) -> str:
    """Hash a tensor's dtype, shape and a few pieces of what `hash_tensor` hashes, at places that its size fixes.

    Args:
        file: The file, opened without a buffer.
        layout: Its layout.
        name: The tensor.

    Returns:
        The BLAKE3 in hexadecimal, of 16 pieces of 4 KiB; of everything where that is all there is.

    Raises:
        FingerprintError: If the file ends before the tensor does.
    """
    span = layout.tensors[name]
    scale = 2 if span.dtype in _HALVES else 1
    size = scale * span.nbytes
    length, starts = SAMPLE_BYTES, [(size - SAMPLE_BYTES) * i // (SAMPLES - 1) // 8 * 8 for i in range(SAMPLES)]
    if size <= SAMPLES * SAMPLE_BYTES:
        length, starts = size, [0]
    pieces = np.empty((len(starts), length // scale), np.uint8)
    for piece, start in zip(pieces, starts, strict=True):
        file.seek(layout.data_start + span.start + start // scale)
        _fill(file, piece)
    wide = np.empty(scale * pieces.size, np.uint8)
    return blake3(_head(span)).update(_widened(pieces.reshape(-1), span.dtype, wide).data).hexdigest()


def _head(span: TensorSpan) -> bytes:
    dtype = "F32" if span.dtype in _SAME_VALUES else span.dtype
    return f"{dtype}|{','.join(map(str, span.shape))}|".encode()


def _fill(file: BinaryIO, part: Bytes) -> None:
    filled = 0
    while filled < len(part):  # a file system may hand out less than was asked for
        got = file.readinto(part[filled:].data)  # type: ignore[attr-defined]
        if not got:
            raise FingerprintError(
                f"{file.name} ended while it was read: something is writing it; try again when it is done"
            )
        filled += got


def _widened(part: Bytes, dtype: str, wide: Bytes) -> Bytes:
    """The bytes as float32, in `wide`, if they are of half its size; otherwise the bytes."""
    if dtype not in _HALVES:
        return part
    halves, room = part.view("<u2"), wide[: 2 * len(part)]
    if dtype == "F16":
        # Faster than NumPy's own conversion, with which the table was made.
        np.take(_float32_of_float16(), halves, out=room.view("<f4"), mode="clip")
    else:  # the upper half of a float32; in two steps NumPy takes the vector unit for both
        np.copyto(room.view("<u4"), halves)
        np.left_shift(room.view("<u4"), 16, out=room.view("<u4"))
    return room


@cache
def _float32_of_float16() -> npt.NDArray[np.float32]:
    return np.arange(1 << 16, dtype="<u2").view("<f2").astype("<f4")
