from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankloom_registry import BaseFingerprint, FingerprintError, fingerprint_base, leaf_cache, tensor_leaves

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
        assert other.identity == str(folder.resolve())
    assert (whole.identity, whole.tensors, whole.parameters, whole.bytes) == ("org/tiny@1", 3, 80, 160)
    assert (whole.dtype, whole.config) == ("bfloat16", {"model_type": "llama", "tie_word_embeddings": False})


def test_float16_is_upcast_without_loss(model: Callable[..., Path]) -> None:
    array = np.array([[1.0, -2.5], [6e-8, 65504.0]], np.float16)
    stored = fingerprint_base(model({"w": ("F16", array)}))
    assert stored.content_root == fingerprint_base(model({"w": ("F32", array.astype(np.float32))})).content_root
    assert stored.dtype == "float16"


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
