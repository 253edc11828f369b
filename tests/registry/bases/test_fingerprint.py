from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankloom_registry import (
    BaseFingerprint,
    FingerprintError,
    fingerprint_base,
    read_safetensors_header,
    tensor_leaves,
)
from rankloom_registry.bases import leaf_cache, leaves
from rankloom_registry.bases.fingerprint import read_base, root_of, sample_base, touched_root

Write = Callable[..., Path]
Weights = dict[str, tuple[str, np.ndarray]]


def half(seed: int, *shape: int) -> np.ndarray:
    """Float32 values that bfloat16 holds exactly."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


VALUES = {
    "model.embed_tokens.weight": half(0, 8, 4),
    "model.layers.0.q.weight": half(1, 4, 4),
    "lm_head.weight": half(2, 8, 4),
}


def as_bfloat16(values: dict[str, np.ndarray]) -> Weights:
    return {name: ("BF16", (array.view(np.uint32) >> 16).astype(np.uint16)) for name, array in values.items()}


def as_float32(values: dict[str, np.ndarray]) -> Weights:
    return {name: ("F32", array) for name, array in values.items()}


@pytest.fixture
def model(tmp_path: Path, write_safetensors: Write) -> Callable[..., Path]:
    """Makes a model folder; more than one mapping of weights makes that many shards."""
    count = 0

    def make(*shards: Weights, **config: Any) -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / f"model-{count}"
        if len(shards) == 1:
            write_safetensors(folder / "model.safetensors", shards[0])
        else:
            names = {}
            for number, shard in enumerate(shards, 1):
                file = f"model-{number:05}-of-{len(shards):05}.safetensors"
                write_safetensors(folder / file, shard)
                names |= dict.fromkeys(shard, file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        config = {"model_type": "llama", "tie_word_embeddings": False} | config
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def bits(count: int, kind: type[np.unsignedinteger[Any]] | type[np.int64]) -> np.ndarray:
    return (np.arange(count, dtype=np.uint64) * 2654435761 >> 7).astype(kind)


def test_what_was_recorded_once_is_found_again(model: Callable[..., Path]) -> None:
    # As version 0.1.0 records it. These hashes never change: registries hold them.
    weights: Weights = {
        "model.embed_tokens.weight": ("BF16", bits(700_001, np.uint16)),
        "model.layers.0.q.weight": ("F32", bits(600_000, np.uint32).reshape(600, 1000)),
        "model.layers.0.k.weight": ("F16", (bits(600_002, np.uint16) & 0x7BFF).reshape(2, 300_001)),
        "model.layers.0.mask": ("I64", bits(200_000, np.int64)),
        "model.layers.0.empty": ("BF16", np.zeros((0, 4), np.uint16)),
        "lm_head.weight": ("BF16", bits(700_001, np.uint16)),
    }
    config = {"tie_word_embeddings": True, "quantization_config": {"quant_method": "bitsandbytes"}}
    found, tensors = read_base(model(weights, **config))
    assert found.content_root == "9e3c936985ec40c1c60286a8027157ecc584447646d23c4bc2d91653411df022"
    assert found.structure == "65d5ea8c9bb9498b0ec469aa5f5bf12507c75f47119503f0194c948633c8e224"
    assert (found.tensors, found.parameters, found.bytes, found.dtype) == (5, 2100003, 6600006, "bfloat16")
    assert tensors == {
        "model.embed_tokens.weight": "c58b19545c3c6bab18cab8ca51e98daf585a8870ad7072bdd896182de4762259",
        "model.layers.0.q.weight": "410f78f3d13350e44a6b61cf0db4d5771e64941182b0d023070749516e134039",
        "model.layers.0.k.weight": "04a1690af53cb83a0b834f27e2007ed2f4534fefc94f88b2448d78f43ab64bdf",
        "model.layers.0.mask": "f62dfa01ab9e5995b5fab707cc22094c87718109c4cd745cdec87d67ee22c7d9",
        "model.layers.0.empty": "52924dfafca6b1915d176051b4813928c6ebb7a22e72097c00a366bac57d5514",
    }
    assert min(array.nbytes for _, array in weights.values() if array.size) > leaves.BLOCK_BYTES  # blocks are joined


def test_the_same_weights_have_the_same_root_however_they_are_stored(model: Callable[..., Path]) -> None:
    weights = as_bfloat16(VALUES)
    first, *rest = weights.items()
    whole = fingerprint_base(model(weights), identity="org/tiny@1")
    for folder in (
        model(dict(reversed(weights.items()))),
        model(dict(rest), dict([first])),
        model(as_float32(VALUES), torch_dtype="float32", transformers_version="9"),
    ):
        other = fingerprint_base(folder)
        assert (other.content_root, other.structure) == (whole.content_root, whole.structure)
        assert other.sampled == whole.sampled == sample_base(folder)
        assert other.identity == str(folder.resolve())
    assert (whole.identity, whole.tensors, whole.parameters, whole.bytes) == ("org/tiny@1", 3, 80, 160)
    assert (whole.dtype, whole.config) == ("bfloat16", {"model_type": "llama", "tie_word_embeddings": False})


def test_float16_is_upcast_without_loss(model: Callable[..., Path]) -> None:
    array = np.array([[1.0, -2.5], [6e-8, 65504.0]], np.float16)
    stored = fingerprint_base(model({"w": ("F16", array)}))
    assert stored.content_root == fingerprint_base(model({"w": ("F32", array.astype(np.float32))})).content_root
    assert stored.dtype == "float16"


@pytest.mark.parametrize("finer", [False, True])
def test_values_that_need_float32_are_found_wherever_they_are(model: Callable[..., Path], finer: bool) -> None:
    values = np.tile(np.float16([1.0, -2.5, 0.0, -0.0]), leaves.BLOCK_BYTES)  # several blocks of each format
    if finer:
        values[-1] = 1 + 2**-10  # 11 bits, of which bfloat16 holds 8
    wide = values.astype(np.float32)
    stored: list[Weights] = [{"w": ("F16", values)}, {"w": ("F32", wide)}]
    roots = {fingerprint_base(model(weights)).content_root for weights in stored}
    assert len(roots) == 1
    short = {"w": ("BF16", (wide.view(np.uint32) >> 16).astype(np.uint16))}
    assert (fingerprint_base(model(short)).content_root in roots) is not finer


def test_float32_that_bfloat16_cannot_hold_is_another_model(model: Callable[..., Path]) -> None:
    finer = {name: np.nextafter(array, np.inf, dtype=np.float32) for name, array in VALUES.items()}
    roots = {fingerprint_base(model(as_float32(values))).content_root for values in (VALUES, finer)}
    assert len(roots) == 2


def test_one_flipped_bit_is_noticed_and_named(model: Callable[..., Path]) -> None:
    folder = model(as_bfloat16(VALUES))
    before, leaves = fingerprint_base(folder), tensor_leaves(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    after, changed = fingerprint_base(folder), tensor_leaves(folder)
    assert after.content_root != before.content_root and after.structure == before.structure
    assert [name for name in leaves if changed[name] != leaves[name]] == ["lm_head.weight"]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: {"renamed": values["lm_head.weight"], **values},
        lambda values: values | {"lm_head.weight": values["lm_head.weight"].reshape(4, 8)},
        lambda values: {name: array for name, array in values.items() if name != "lm_head.weight"},
    ],
)
def test_names_and_shapes_count(model: Callable[..., Path], change: Callable[..., dict[str, np.ndarray]]) -> None:
    one, other = (fingerprint_base(model(as_bfloat16(values))) for values in (VALUES, change(VALUES)))
    assert one.content_root != other.content_root and one.structure != other.structure


def test_the_configuration_counts_in_the_structure(model: Callable[..., Path]) -> None:
    weights = as_bfloat16(VALUES)
    one, other = fingerprint_base(model(weights)), fingerprint_base(model(weights, rope_theta=1e6))
    assert one.content_root == other.content_root and one.structure != other.structure


def without_label(fingerprint: BaseFingerprint) -> BaseFingerprint:
    return dataclasses.replace(fingerprint, identity="")


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}])
def test_a_tied_head_counts_once(model: Callable[..., Path], config: dict[str, Any]) -> None:
    alone = {name: array for name, array in VALUES.items() if name != "lm_head.weight"}
    both = alone | {"lm_head.weight": VALUES["model.embed_tokens.weight"]}
    if "text_config" in config:
        config = {**config, "tie_word_embeddings": True}
    tied = [fingerprint_base(model(as_bfloat16(values), **config)) for values in (alone, both)]
    assert without_label(tied[0]) == without_label(tied[1])
    untied = [fingerprint_base(model(as_bfloat16(values))) for values in (alone, both)]
    assert untied[0].content_root != untied[1].content_root
    differing = fingerprint_base(model(as_bfloat16(VALUES), **config))
    assert differing.content_root != tied[0].content_root and differing.tensors == 3


def test_tokenizer_and_chat_template_are_hashed_apart(model: Callable[..., Path]) -> None:
    folder = model(as_bfloat16(VALUES))
    bare = fingerprint_base(folder)
    assert bare.tokenizer_sha256 is None and bare.chat_template_sha256 is None
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    dressed = fingerprint_base(folder)
    assert dressed.content_root == bare.content_root
    assert dressed.tokenizer_sha256 is not None
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert fingerprint_base(folder).chat_template_sha256 == dressed.chat_template_sha256 is not None


def test_the_quantization_is_hashed_apart(model: Callable[..., Path]) -> None:
    weights = as_bfloat16(VALUES)
    four, eight = ({"quant_method": "bitsandbytes", f"load_in_{bits}bit": True} for bits in (4, 8))
    plain, first, again, other = (
        fingerprint_base(model(weights, **({"quantization_config": config} if config else {})))
        for config in ({}, four, dict(reversed(four.items())), eight)
    )
    assert plain.quantization_sha256 is None
    assert first.quantization_sha256 == again.quantization_sha256 != other.quantization_sha256
    assert first.content_root == plain.content_root


def test_a_few_pieces_of_a_tensor_are_a_tripwire_and_no_proof(model: Callable[..., Path]) -> None:
    values = {"model.big.weight": half(3, 1000, 300)}
    folder = model(as_bfloat16(values))
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    start = len(content) - 2 * 300_000
    before = sample_base(folder)
    assert before == sample_base(model(as_float32(values))) == fingerprint_base(folder).sampled
    for place, seen in ((start, True), (len(content) - 1, True), (start + 2050, False)):
        changed = bytearray(content)
        changed[place] ^= 1
        weights.write_bytes(changed)
        assert (sample_base(folder) != before) is seen
    assert fingerprint_base(folder).content_root != fingerprint_base(model(as_bfloat16(values))).content_root


def test_the_root_of_some_tensors_is_theirs_alone(model: Callable[..., Path]) -> None:
    first, *rest = as_bfloat16(VALUES).items()
    folder = model(dict(rest), dict([first]))
    _, tensors = read_base(folder)
    touched = {"model.layers.0.q.weight", "model.embed_tokens.weight"}
    calls: list[tuple[int, int]] = []
    root = touched_root(folder, touched, progress=lambda done, total: calls.append((done, total)))
    assert root == root_of({name: tensors[name] for name in touched})
    assert calls[-1] == (96, 96)
    other = VALUES | {"lm_head.weight": half(9, 8, 4)}
    assert touched_root(model(as_bfloat16(other)), touched) == root
    other = VALUES | {"model.layers.0.q.weight": half(9, 4, 4)}
    assert touched_root(model(as_bfloat16(other)), touched) != root
    with pytest.raises(FingerprintError, match="lacks the tensor model.none"):
        touched_root(folder, {"model.none"})


def test_a_file_that_shrinks_while_it_is_read_is_refused(model: Callable[..., Path]) -> None:
    file = model(as_bfloat16(VALUES)) / "model.safetensors"
    header = read_safetensors_header(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FingerprintError, match="ended while it was read"):
        leaves.hash_tensor(file, header, "lm_head.weight")


def test_one_file_and_a_linked_snapshot_are_models_too(model: Callable[..., Path], tmp_path: Path) -> None:
    folder = model(as_bfloat16(VALUES))
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    whole = without_label(fingerprint_base(folder))
    assert without_label(fingerprint_base(folder / "model.safetensors")) == whole
    assert without_label(fingerprint_base(snapshot)) == whole


def test_progress_ends_at_all_bytes(model: Callable[..., Path]) -> None:
    calls: list[tuple[int, int]] = []
    fingerprint_base(model(as_bfloat16(VALUES)), progress=lambda done, total: calls.append((done, total)))
    assert [total for _, total in calls] == [160] * 3
    assert calls[-1] == (160, 160) and calls == sorted(calls)


def test_what_is_no_model_is_refused(model: Callable[..., Path], tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"")
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    (quantized / "tiny.Q4_K.gguf").write_bytes(b"")
    empty = tmp_path / "empty"
    empty.mkdir()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    first, *rest = as_bfloat16(VALUES).items()
    lacking = model(dict(rest), dict([first]))
    (lacking / "model-00001-of-00002.safetensors").unlink()
    twice = model(dict(rest), dict(rest))
    (twice / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )
    outside = model(dict(rest), dict([first]))
    (outside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    torn = model(as_bfloat16(VALUES))
    (torn / "model.safetensors").write_bytes(b"torn")
    muddled = model(as_bfloat16(VALUES))
    (muddled / "config.json").write_text("{")
    for folder, reason in (
        (pickled, "pickle"),
        (pickled / "pytorch_model.bin", "pickle"),
        (quantized, "give that file itself"),
        (empty, "neither"),
        (adapter, "is an adapter"),
        (tmp_path / "none", "neither a model folder nor"),
        (lacking, "lacks"),
        (twice, "two files"),
        (outside, "outside"),
        (torn, "sound"),
        (muddled, "not JSON"),
    ):
        with pytest.raises(FingerprintError, match=reason):
            fingerprint_base(folder)


def test_the_cache_is_used_while_the_file_stays_as_it_was(
    model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaf_cache, "SETTLED_NS", 0)
    folder = model(as_bfloat16(VALUES))
    fresh = fingerprint_base(folder)
    cache = tmp_path / "cache" / "rankloom" / "fingerprints.json"
    stored = json.loads(cache.read_text())
    ((key, leaves),) = stored["files"].items()
    stored["files"][key] = dict.fromkeys(leaves, "0" * 64)
    cache.write_text(json.dumps(stored))
    assert set(tensor_leaves(folder).values()) == {"0" * 64}  # it was used, and not the file
    (folder / "model.safetensors").touch()
    assert fingerprint_base(folder) == fresh
    # What is known of some tensors is kept when the others are read.
    (folder / "model.safetensors").touch()
    touched_root(folder, {"lm_head.weight"})
    partial = json.loads(cache.read_text())["files"]
    assert [len(found) for found in partial.values()][-1] == 1
    assert fingerprint_base(folder) == fresh
    full = json.loads(cache.read_text())["files"]
    assert [len(found) for found in full.values()][-1] == 3
    for damage in ("", "{", "[]", "null", '{"version": "1"}', '{"version": "1", "files": 3}'):
        cache.write_text(damage)
        assert fingerprint_base(folder) == fresh


def test_a_file_that_changed_a_moment_ago_is_not_cached(model: Callable[..., Path], tmp_path: Path) -> None:
    fingerprint_base(model(as_bfloat16(VALUES)))
    assert not (tmp_path / "cache" / "rankloom" / "fingerprints.json").exists()


def test_a_cache_that_cannot_be_written_costs_only_time(
    model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaf_cache, "SETTLED_NS", 0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fingerprint_base(model(as_bfloat16(VALUES))).tensors == 3
