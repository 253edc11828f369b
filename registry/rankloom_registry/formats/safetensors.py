"""Reads the header of a .safetensors file and trusts none of it.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from rankloom_registry.errors import ArtifactError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
BLOCK_BYTES = 1 << 20

# dtype -> (bits per element, the name that torch gives it)
DTYPES: dict[str, tuple[int, str]] = {
    "F64": (64, "float64"),
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F6_E2M3": (6, "float6_e2m3"),
    "F6_E3M2": (6, "float6_e3m2"),
    "F4": (4, "float4_e2m1fn_x2"),
    "C64": (64, "complex64"),
    "I64": (64, "int64"),
    "I32": (32, "int32"),
    "I16": (16, "int16"),
    "I8": (8, "int8"),
    "U64": (64, "uint64"),
    "U32": (32, "uint32"),
    "U16": (16, "uint16"),
    "U8": (8, "uint8"),
    "BOOL": (8, "bool"),
}


class TensorSpan(NamedTuple):
    """Where a tensor lies: `start` and `end` are bytes from `Layout.data_start`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the tensors of a weight file lie.

    Args:
        tensors: Each tensor's place, in the order of the data.
        data_start: Where the data begins, in bytes from the beginning of the file.
    """

    tensors: dict[str, TensorSpan]
    data_start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader(Layout):
    """A header that agrees with the size of its file.

    Args:
        tensors: Each tensor's place, in the order of the data.
        data_start: Where the data begins, in bytes from the beginning of the file.
        metadata: The header's free text.
    """

    metadata: dict[str, str]


def read_safetensors_header(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """Read and check the header of a .safetensors file.

    Args:
        path: The file.

    Returns:
        The header.

    Raises:
        ArtifactError: If it is oversized or malformed, or its tensors leave holes, overlap, or do not fill the file.
    """
    path = Path(path)
    with path.open("rb") as file:
        return _read(file, path)


def float32_blocks(path: Path, header: Layout, name: str) -> Iterator[npt.NDArray[np.float32]]:
    """Read a BF16, F16 or F32 tensor as float32, which holds its values exactly, a few MiB at a time.

    Args:
        path: The file of the header.
        header: Its header.
        name: The tensor.

    Yields:
        One-dimensional blocks; each is valid until the next is asked for.
    """
    dtype = header.tensors[name].dtype
    for block in raw_blocks(path, header, name):
        match dtype:
            case "F32":
                yield block.view("<f4")
            case "F16":
                yield block.view("<f2").astype("<f4")
            case "BF16":
                # bfloat16 is the upper half of a float32.
                yield np.left_shift(block.view("<u2"), 16, dtype="<u4").view("<f4")
            case _:
                raise ArtifactError(f"tensor {name!r} in {path} is {dtype}; only BF16, F16 and F32 fit in float32")


def raw_blocks(path: Path, header: Layout, name: str) -> Iterator[npt.NDArray[np.uint8]]:
    """Read a tensor's bytes, memory-mapped, a few MiB at a time.

    Args:
        path: The file of the header.
        header: Its header.
        name: The tensor.

    Yields:
        One-dimensional blocks.
    """
    span = header.tensors[name]
    if span.start == span.end:
        return
    data = np.memmap(path, np.uint8, "r", header.data_start + span.start, (span.end - span.start,))
    for start in range(0, len(data), BLOCK_BYTES):
        yield data[start : start + BLOCK_BYTES]


def _read(file: BinaryIO, path: Path) -> SafetensorsHeader:
    def refuse(reason: str) -> ArtifactError:
        return ArtifactError(f"{path} is not a sound .safetensors file: {reason}; save or download it again")

    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise refuse(f"its header claims {length} bytes of a file of {size}, at most {MAX_HEADER_BYTES} are allowed")
    try:
        entries = json.loads(file.read(length).decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise refuse(f"its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise refuse("its header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refuse("its metadata is not text")
    tensors = {}
    for name, entry in entries.items():
        if (span := _span(entry)) is None or not name.isprintable():
            raise refuse(f"the entry of tensor {name!r} is malformed: {str(entry)[:120]}")
        tensors[name] = span
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    position = 0
    for name, span in tensors.items():
        if span.start != position:
            kind = "hole" if span.start > position else "overlap"
            raise refuse(
                f"{kind} before tensor {name!r}: it starts at {span.start}, the data so far ends at {position}"
            )
        position = span.end
    data_start = 8 + length
    if data_start + position != size:
        raise refuse(f"its tensors end at byte {data_start + position}, the file at {size}")
    return SafetensorsHeader(tensors=tensors, data_start=data_start, metadata=metadata)


def _span(entry: Any) -> TensorSpan | None:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if len(entry) == 3:
            pass
        case _:
            return None
    if dtype not in DTYPES or not all(type(size) is int and size >= 0 for size in shape):
        return None
    bits = math.prod(shape) * DTYPES[dtype][0]
    return TensorSpan(dtype, tuple(shape), start, end) if bits % 8 == 0 and end - start == bits // 8 else None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key appears twice")
    return entries
