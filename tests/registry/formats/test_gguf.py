from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankloom_registry import FingerprintError, fingerprint_base
from rankloom_registry.bases.fingerprint import read_base, sample_base, touched_root
from rankloom_registry.formats.gguf import TYPES, open_gguf

ALIGNMENT = 32


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def texts(*values: str) -> bytes:
    return struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text, values))


def number(value: int) -> bytes:
    return struct.pack("<II", 4, value)


def string(value: str) -> bytes:
    return struct.pack("<I", 8) + text(value)


METADATA = {
    "general.architecture": string("llama"),
    "general.name": string("Tiny"),
    "llama.block_count": number(1),
    "llama.rope.freq_base": struct.pack("<If", 6, 10000.0),
    "llama.sections": struct.pack("<IIQ3i", 9, 5, 3, 16, 24, 24),
    "tokenizer.ggml.model": string("gpt2"),
    "tokenizer.ggml.tokens": texts("a", "b", "ab"),
    "tokenizer.chat_template": string("{{ messages }}"),
}
# (name, shape as GGUF counts it, type, bytes); Q4_0 holds 32 elements in 18 bytes.
TENSORS = [
    ("token_embd.weight", (32, 3), 2, bytes(range(54))),
    ("output_norm.weight", (4,), 0, np.arange(4, dtype=np.float32).tobytes()),
    ("blk.0.attn_q.weight", (4, 2), 30, np.arange(8, dtype=np.uint16).tobytes()),
]


def padded(data: bytes, alignment: int = ALIGNMENT) -> bytes:
    return data + bytes(-len(data) % alignment)


def gguf_bytes(
    metadata: dict[str, bytes] = METADATA,
    tensors: list[tuple[str, tuple[int, ...], int, bytes]] = TENSORS,
    *,
    alignment: int = ALIGNMENT,
    spoil: Callable[[list[dict[str, Any]]], object] | None = None,
    version: int = 3,
    entries: int | None = None,
) -> bytes:
    infos, data = [], b""
    for name, shape, kind, content in tensors:
        infos.append({"name": name, "shape": shape, "kind": kind, "offset": len(data)})
        data += padded(content, alignment)
    if spoil:
        spoil(infos)
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(metadata) if entries is None else entries)
    head += b"".join(text(name) + value for name, value in metadata.items())
    for info in infos:
        shape = info["shape"]
        head += text(info["name"]) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, info["kind"], info["offset"])
    return padded(head, alignment) + data


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    count = 0

    def make(**changes: Any) -> Path:
        nonlocal count
        count += 1
        path = tmp_path / f"model-{count}.gguf"
        path.write_bytes(gguf_bytes(**changes))
        return path

    return make


def test_a_header_says_what_the_file_holds(write: Callable[..., Path]) -> None:
    found = open_gguf(write())
    assert found.tensors == {
        "token_embd.weight": ("Q4_0", (3, 32), 0, 54),
        "output_norm.weight": ("F32", (4,), 64, 80),
        "blk.0.attn_q.weight": ("BF16", (2, 4), 96, 112),
    }
    assert found.config == {
        "model_type": "llama",
        "llama.block_count": 1,
        "llama.rope.freq_base": 10000.0,
        "llama.sections": [16, 24, 24],
    }
    assert found.quantization == {"quant_method": "gguf", "types": ["Q4_0"]}


def test_a_base_in_one_file_is_fingerprinted(write: Callable[..., Path]) -> None:
    path = write()
    found, leaves = read_base(path)
    assert found.identity == f"gguf:{path.resolve()}"
    assert (found.tensors, found.parameters, found.bytes, found.dtype) == (3, 108, 86, "q4_0")
    assert found.sampled == sample_base(path)
    assert found.chat_template_sha256 == hashlib.sha256(b"{{ messages }}").hexdigest()
    assert leaves.keys() == open_gguf(path).tensors.keys()
    assert touched_root(path, leaves.keys()) == found.content_root
    assert fingerprint_base(path, identity="org/tiny@1").identity == "org/tiny@1"


def test_only_what_the_tensors_hold_counts(write: Callable[..., Path]) -> None:
    found = fingerprint_base(write())
    as_float32 = (np.arange(8, dtype=np.uint32) << 16).view(np.float32).tobytes()
    same = [
        write(tensors=TENSORS[::-1]),
        write(metadata=METADATA | {"general.name": string("Other")}),
        write(metadata=METADATA | {"general.alignment": number(64)}, alignment=64),
        write(tensors=[*TENSORS[:2], ("blk.0.attn_q.weight", (4, 2), 0, as_float32)]),
    ]
    assert {fingerprint_base(path).content_root for path in same} == {found.content_root}
    assert {fingerprint_base(path).structure for path in same} == {found.structure}
    # The same bytes of another type are other weights, and so is one flipped bit.
    retyped = write(tensors=[("token_embd.weight", (32, 3), 20, bytes(range(54))), *TENSORS[1:]])
    flipped = write(tensors=[("token_embd.weight", (32, 3), 2, bytes([1, *range(1, 54)])), *TENSORS[1:]])
    assert len({fingerprint_base(path).content_root for path in (retyped, flipped)} | {found.content_root}) == 3


def test_the_metadata_is_hashed_in_its_parts(write: Callable[..., Path]) -> None:
    found = fingerprint_base(write())
    parts = ("structure", "tokenizer_sha256", "chat_template_sha256", "quantization_sha256", "content_root")
    many = [struct.pack("<IIQ", 9, 5, 5000) + last * 5000 for last in (bytes(4), b"\1\0\0\0")]
    for changed, value, part in (
        ("llama.block_count", number(2), "structure"),
        ("tokenizer.ggml.tokens", texts("a", "b", "ba"), "tokenizer_sha256"),
        ("tokenizer.chat_template", string("{{ other }}"), "chat_template_sha256"),
    ):
        other = fingerprint_base(write(metadata=METADATA | {changed: value}))
        assert [name for name in parts if getattr(other, name) != getattr(found, name)] == [part]
    long = {fingerprint_base(write(metadata=METADATA | {"llama.long": value})).structure for value in many}
    assert len(long | {found.structure}) == 3
    bare = {name: value for name, value in METADATA.items() if not name.startswith("tokenizer.")}
    unquantized = fingerprint_base(write(metadata=bare, tensors=TENSORS[1:]))
    assert unquantized.tokenizer_sha256 is unquantized.chat_template_sha256 is unquantized.quantization_sha256 is None
    assert unquantized.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 1}, "version 2 or 3"),
        ({"version": 1 << 24}, "version 2 or 3"),
        ({"tensors": []}, "0 tensors"),
        ({"entries": 1 << 60}, "not a sound GGUF file"),
        ({"metadata": METADATA | {"general.alignment": number(24)}}, "power of two"),
        ({"metadata": METADATA | {"general.alignment": number(0)}}, "power of two"),
        ({"metadata": METADATA | {"split.count": struct.pack("<IH", 2, 3)}}, "one of 3 parts"),
        ({"metadata": {"k": struct.pack("<I", 99)}}, "type 99"),
        ({"metadata": {"k": struct.pack("<IIQ", 9, 4, 1 << 61)}}, "amid its header"),
        ({"metadata": {"k": struct.pack("<IIQ", 9, 0, 1 << 61)}}, "amid its header"),
        ({"metadata": {"k": struct.pack("<IIQ", 9, 8, 1 << 61)}}, "not a sound GGUF file"),
        ({"metadata": {"k": struct.pack("<IIQIQ", 9, 9, 1, 4, 0)}}, "list of the type 9"),
        ({"metadata": {"k": struct.pack("<IQ", 8, 1 << 62)}}, "amid its header"),
        ({"metadata": {"k": struct.pack("<IQB", 8, 1, 0xFF)}}, "not a sound GGUF file"),
        ({"spoil": lambda infos: infos[0].update(kind=4)}, "type 4"),
        ({"spoil": lambda infos: infos[0].update(shape=(33, 3))}, "whole blocks"),
        ({"spoil": lambda infos: infos[0].update(shape=(32, 1 << 60))}, "starts at"),
        ({"spoil": lambda infos: infos[2].update(shape=(4, 1 << 60))}, "the file at"),
        ({"spoil": lambda infos: infos[1].update(offset=32)}, "starts at 32"),
        ({"spoil": lambda infos: infos[1].update(offset=128)}, "starts at 128"),
        ({"spoil": lambda infos: infos[1].update(name=infos[0]["name"])}, "malformed"),
        ({"spoil": lambda infos: infos[1].update(name="a\0b")}, "malformed"),
        ({"spoil": lambda infos: infos[1].update(shape=(1,) * 9)}, "malformed"),
    ],
)
def test_a_file_that_is_not_sound_is_refused(write: Callable[..., Path], changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(FingerprintError, match=reason):
        fingerprint_base(write(**changes))


def test_metadata_given_twice_is_refused(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("k") + number(1))
    (tmp_path / "twice.gguf").write_bytes(head)
    with pytest.raises(FingerprintError, match="'k' twice"):
        open_gguf(tmp_path / "twice.gguf")


def test_a_torn_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = gguf_bytes()
    end = len(whole) - (-16 % ALIGNMENT)  # the padding after the last tensor holds nothing
    for length in [*range(0, end, 7), end - 1]:
        (tmp_path / "torn.gguf").write_bytes(whole[:length])
        with pytest.raises(FingerprintError, match="not a sound GGUF file"):
            open_gguf(tmp_path / "torn.gguf")
    (tmp_path / "torn.gguf").write_bytes(whole[:end])
    assert len(open_gguf(tmp_path / "torn.gguf").tensors) == 3


def test_it_reads_what_the_gguf_library_writes(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.5, 1.5])
    values = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    kinds = [gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0", "Q4_0", "Q6_K")]
    for kind in kinds:
        try:
            writer.add_tensor(f"of.{kind.name}", gguf.quants.quantize(values, kind), raw_dtype=kind)
        except NotImplementedError:
            continue
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, read = open_gguf(path), gguf.GGUFReader(path)
    assert len(found.tensors) == len(read.tensors) >= 3
    data_start = found.layout.data_start
    for tensor in read.tensors:
        span = found.tensors[tensor.name]
        assert (data_start + span.start, span.end - span.start) == (tensor.data_offset, tensor.n_bytes)
        assert (span.dtype, span.shape) == (tensor.tensor_type.name, (4, 256))
    assert json.dumps(found.config) == json.dumps({"model_type": "llama", "llama.block_count": 1})


def test_it_knows_the_types_that_the_gguf_library_knows() -> None:
    constants = pytest.importorskip("gguf.constants")
    assert {int(kind): (kind.name, *sizes) for kind, sizes in constants.GGML_QUANT_SIZES.items()} == TYPES
