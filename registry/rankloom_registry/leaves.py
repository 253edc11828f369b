"""Hashes a tensor by its values, whichever float format holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from blake3 import blake3

from rankloom_registry.safetensors import SafetensorsHeader, float32_blocks, raw_blocks

_SAME_VALUES = frozenset({"F32", "BF16", "F16"})


def hash_tensor(path: Path, header: SafetensorsHeader, name: str) -> str:
    """Hash a tensor's dtype, shape and bytes; BF16 and F16 as the float32 that holds the same values.

    Args:
        path: The file of the header.
        header: Its header.
        name: The tensor.

    Returns:
        The BLAKE3 of `dtype | shape | bytes` in hexadecimal.
    """
    span = header.tensors[name]
    as_float32 = span.dtype in _SAME_VALUES
    digest = blake3(max_threads=blake3.AUTO)
    digest.update(f"{'F32' if as_float32 else span.dtype}|{','.join(map(str, span.shape))}|".encode())
    for block in (float32_blocks if as_float32 else raw_blocks)(path, header, name):
        digest.update(block.view(np.uint8).data)
    return digest.hexdigest()
