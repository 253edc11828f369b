"""Hashes a tensor by its values, whichever float format holds them."""

from __future__ import annotations

from collections.abc import Callable
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

Bytes = npt.NDArray[np.uint8]
Form = Callable[[Bytes, Bytes], Bytes | None]


def hash_tensor(path: Path, layout: Layout, name: str) -> str:
    """Hash a tensor's dtype, shape and bytes, in the smallest of the forms that its values can have.

    BF16, F16 and F32 are hashed as BF16 if that holds every value exactly, otherwise as F32: so a tensor has the same
    hash whichever of them it is stored as, and the usual one is hashed as it is.

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
    block = np.empty(min(BLOCK_BYTES, span.nbytes), np.uint8)
    room = np.empty(2 * len(block), np.uint8)
    with path.open("rb", buffering=0) as file:
        for dtype, form in _FORMS.get(span.dtype, {span.dtype: _as_it_is}).items():
            digest = blake3(_head(dtype, span))
            file.seek(layout.data_start + span.start)
            for start in range(0, span.nbytes, BLOCK_BYTES):
                part = block[: min(BLOCK_BYTES, span.nbytes - start)]
                _fill(file, part)
                formed = form(part, room)
                if formed is None:  # most often seen in the first block
                    break
                digest.update(formed.data)
            else:
                return digest.hexdigest()
    raise AssertionError(f"the last form of {span.dtype} holds everything")


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
    scale = 2 if span.dtype in ("BF16", "F16") else 1
    size = scale * span.nbytes
    length, starts = SAMPLE_BYTES, [(size - SAMPLE_BYTES) * i // (SAMPLES - 1) // 8 * 8 for i in range(SAMPLES)]
    if size <= SAMPLES * SAMPLE_BYTES:
        length, starts = size, [0]
    pieces = np.empty((len(starts), length // scale), np.uint8)
    for piece, start in zip(pieces, starts, strict=True):
        file.seek(layout.data_start + span.start + start // scale)
        _fill(file, piece)
    room = np.empty(scale * pieces.size, np.uint8)
    dtype, form = _FLOAT32.get(span.dtype, (span.dtype, _as_it_is))
    return blake3(_head(dtype, span)).update(form(pieces.reshape(-1), room).data).hexdigest()


def _head(dtype: str, span: TensorSpan) -> bytes:
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


def _as_it_is(part: Bytes, room: Bytes) -> Bytes:
    return part


def _bfloat16_as_float32(part: Bytes, room: Bytes) -> Bytes:
    wide = room[: 2 * len(part)]
    # The upper half of a float32; in two steps NumPy takes the vector unit for both.
    np.copyto(wide.view("<u4"), part.view("<u2"))
    np.left_shift(wide.view("<u4"), 16, out=wide.view("<u4"))
    return wide


def _float16_as_float32(part: Bytes, room: Bytes) -> Bytes:
    wide = room[: 2 * len(part)]
    # Faster than NumPy's own conversion, with which the table was made.
    np.take(_float32_of_float16(), part.view("<u2"), out=wide.view("<f4"), mode="clip")
    return wide


def _float32_as_bfloat16(part: Bytes, room: Bytes) -> Bytes | None:
    if np.bitwise_or.reduce(part.view("<u4")) & 0xFFFF:
        return None
    narrow = room[: len(part) // 2]
    np.copyto(narrow.view("<u2"), part.view("<u2")[1::2])
    return narrow


def _float16_as_bfloat16(part: Bytes, room: Bytes) -> Bytes | None:
    return _float32_as_bfloat16(_float16_as_float32(part, room), room)


@cache
def _float32_of_float16() -> npt.NDArray[np.float32]:
    return np.arange(1 << 16, dtype="<u2").view("<f2").astype("<f4")


# Each form of a dtype and how bytes are brought into it, None if it cannot hold them; the last one always can.
_FORMS: dict[str, dict[str, Form]] = {
    "BF16": {"BF16": _as_it_is},
    "F16": {"BF16": _float16_as_bfloat16, "F32": _float16_as_float32},
    "F32": {"BF16": _float32_as_bfloat16, "F32": _as_it_is},
}
_FLOAT32: dict[str, tuple[str, Callable[[Bytes, Bytes], Bytes]]] = {
    "BF16": ("F32", _bfloat16_as_float32),
    "F16": ("F32", _float16_as_float32),
}
