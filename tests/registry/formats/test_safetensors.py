from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankloom_registry import ArtifactError, read_safetensors_header
from rankloom_registry.formats.safetensors import float32_blocks

TWO = {"a": ("F32", np.arange(4, dtype=np.float32)), "b": ("F16", np.ones((2, 2), np.float16))}


def test_a_header_says_where_the_tensors_are(tmp_path: Path, write_safetensors: Callable[..., Path]) -> None:
    path = write_safetensors(
        tmp_path / "x.safetensors", TWO, spoil=lambda header: header.update(__metadata__={"format": "pt"})
    )
    header = read_safetensors_header(path)
    assert header.tensors == {"a": ("F32", (4,), 0, 16), "b": ("F16", (2, 2), 16, 24)}
    assert header.metadata == {"format": "pt"}
    assert header.data_start + 24 == path.stat().st_size
    assert np.concatenate(list(float32_blocks(path, header, "b"))).tolist() == [1.0] * 4


def test_an_empty_tensor_is_sound(tmp_path: Path, write_safetensors: Callable[..., Path]) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"e": ("F32", np.zeros((0, 3), np.float32)), **TWO})
    header = read_safetensors_header(path)
    assert header.tensors["e"].shape == (0, 3)
    assert list(float32_blocks(path, header, "e")) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda header: header["b"].update(data_offsets=[18, 26]),
        lambda header: header["b"].update(data_offsets=[8, 16]),
        lambda header: header["b"].update(data_offsets=[16, 22]),
        lambda header: header["b"].update(data_offsets=[24, 16]),
        lambda header: header["a"].update(data_offsets=[-4, 12]),
        lambda header: header["a"].update(shape=[8]),
        lambda header: header["a"].update(shape=[-4]),
        lambda header: header["a"].update(shape=[2.0, 2]),
        lambda header: header["a"].update(dtype="F128"),
        lambda header: header["a"].update(extra=1),
        lambda header: header["a"].pop("shape"),
        lambda header: header.pop("b"),
        lambda header: header.update({"c\0d": header.pop("b")}),
        lambda header: header.update(__metadata__={"n": 1}),
        lambda header: header.update(a=[]),
    ],
)
def test_a_header_that_does_not_agree_with_its_file_is_refused(
    tmp_path: Path, write_safetensors: Callable[..., Path], spoil: Callable[[dict[str, Any]], object]
) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", TWO, spoil=spoil)
    with pytest.raises(ArtifactError, match="not a sound"):
        read_safetensors_header(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02\0\0",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 200_000_000) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 2) + b"\xff\xff",
        struct.pack("<Q", 2) + b"{}trailing",
        struct.pack("<Q", 15) + b'{"a": 1, "a":2}',
        struct.pack("<Q", 20000) + b"[" * 20000,
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not a sound"):
        read_safetensors_header(path)
