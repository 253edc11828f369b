from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rankloom_registry import AdapterAdded, ArtifactError, ArtifactStore, BaseFingerprint, BaseSeen, Registry

Make = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def leftovers(store: ArtifactStore) -> list[str]:
    return [path.name for path in store.root.iterdir() if path.name != "sha256"]


def test_the_same_content_is_kept_once(store: ArtifactStore, adapter_folder: Make) -> None:
    address = store.add(adapter_folder())
    assert store.add(adapter_folder("again")) == address
    assert store.add(adapter_folder("other", weight=0.25)) != address
    folder = store.path(address)
    assert folder == store.root / "sha256" / address[:2] / address
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    assert len(list(store.root.glob("sha256/*/*"))) == 2
    assert leftovers(store) == []
    store.verify(address)


def test_removing_is_final_and_repeatable(store: ArtifactStore, adapter_folder: Make) -> None:
    address = store.add(adapter_folder())
    store.remove(address)
    store.remove(address)
    assert not store.path(address).exists() and leftovers(store) == []
    with pytest.raises(ArtifactError, match="gone"):
        store.verify(address)
    for wrong in ("", "../x", "A" * 64, "a" * 63):
        with pytest.raises(ArtifactError, match="address"):
            store.path(wrong)


def test_a_changed_file_is_named(registry: Registry, base: BaseFingerprint, adapter_folder: Make) -> None:
    source = adapter_folder()
    (source / "README.md").write_text("# hello\n")
    address = registry.artifacts.add(source)
    registry.record(
        BaseSeen(base=base),
        AdapterAdded(
            adapter_id="abcd",
            name="first",
            base_content_root=base.content_root,
            params={},
            metrics={},
            artifact_sha256=address,
        ),
    )
    adapter = registry.adapter("abcd")
    assert adapter.artifact_path is not None
    registry.verify(adapter)

    weights = adapter.artifact_path / "adapter_model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors changed"):
        registry.verify(adapter)
    assert registry.artifacts.add(source) == address  # heals it
    registry.verify(adapter)

    (adapter.artifact_path / "extra.py").write_text("")
    (adapter.artifact_path / "README.md").unlink()
    with pytest.raises(ArtifactError, match=r"README\.md is missing, extra\.py was added"):
        registry.verify(adapter)
    (adapter.artifact_path / "extra.py").unlink()
    (adapter.artifact_path / "README.md").symlink_to(source / "README.md")
    with pytest.raises(ArtifactError, match="link"):
        registry.verify(adapter)
    manifest = adapter.artifact_path / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{}")
    with pytest.raises(ArtifactError, match=r"manifest\.json .*changed"):
        registry.verify(adapter)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"auto_mapping": {"parent_library": "evil"}}, "auto_mapping"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"megatron_core": "evil.core"}, "megatron_core"),
        ({"peft_type": "IA3"}, "LoRA"),
        ({"r": 0}, "rank"),
        ({"r": 1_000_000}, "rank"),
        ({"r": "8"}, "rank"),
        ({"r": True}, "rank"),
        ({"rank_pattern": {"q_proj": 9999}}, "rank"),
        ({"rank_pattern": [8]}, "rank"),
    ],
)
def test_a_configuration_that_could_do_harm_is_refused(
    store: ArtifactStore, adapter_folder: Make, config: dict[str, object], reason: str
) -> None:
    source = adapter_folder(**config)
    with pytest.raises(ArtifactError, match=reason) as caught:
        store.add(source)
    assert str(source) in str(caught.value) and "incoming" not in str(caught.value)
    assert leftovers(store) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_configuration_is_a_json_object(store: ArtifactStore, adapter_folder: Make, text: str) -> None:
    source = adapter_folder()
    (source / "adapter_config.json").write_text(text)
    with pytest.raises(ArtifactError, match="adapter_config"):
        store.add(source)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_are_finite(store: ArtifactStore, adapter_folder: Make, value: float) -> None:
    with pytest.raises(ArtifactError, match=r"lora_A\.weight.*NaN or Inf"):
        store.add(adapter_folder(weight=value))


def test_bfloat16_weights_are_finite_too(
    store: ArtifactStore, adapter_folder: Make, write_safetensors: Callable[..., Path]
) -> None:
    source = adapter_folder()
    weights = source / "adapter_model.safetensors"
    halves = {"q.lora_A.weight": (2, 1), "q.lora_B.weight": (1, 2)}
    infinite = np.array([0x3F80, 0x7F80], np.uint16)
    write_safetensors(weights, {name: ("BF16", infinite.reshape(shape)) for name, shape in halves.items()})
    with pytest.raises(ArtifactError, match="NaN or Inf"):
        store.add(source)
    whole = np.array([1, 2])
    write_safetensors(weights, {name: ("I64", whole.reshape(shape)) for name, shape in halves.items()})
    with pytest.raises(ArtifactError, match="I64"):
        store.add(source)
    write_safetensors(weights, {})
    with pytest.raises(ArtifactError, match="no tensor"):
        store.add(source)


def test_only_regular_allowed_files_are_taken(store: ArtifactStore, adapter_folder: Make, tmp_path: Path) -> None:
    outside = tmp_path / "outside.md"
    outside.write_text("secret")

    linked = adapter_folder("linked")
    (linked / "README.md").symlink_to(outside)
    extra = adapter_folder("extra")
    (extra / "training_args.bin").write_bytes(b"")
    nested = adapter_folder("nested")
    (nested / "README.md").mkdir()
    piped = adapter_folder("piped")
    os.mkfifo(piped / "README.md")
    large = adapter_folder("large")
    (large / "README.md").write_bytes(b" " * (5 << 20))
    lacking = adapter_folder("lacking")
    (lacking / "adapter_model.safetensors").unlink()
    torn = adapter_folder("torn")
    os.truncate(torn / "adapter_model.safetensors", 100)
    for source, reason in (
        (linked, "link"),
        (extra, r"training_args\.bin"),
        (nested, "regular"),
        (piped, "regular"),
        (large, "smaller"),
        (lacking, "lacks"),
        (torn, "sound"),
        (outside, "not a folder"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            store.add(source)
    assert list(store.root.glob("*")) == []


def test_the_copy_is_loadable_as_it_was(store: ArtifactStore, adapter_folder: Make) -> None:
    source = adapter_folder()
    copy = store.path(store.add(source))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (copy / name).read_bytes() == (source / name).read_bytes()
    assert json.loads((copy / "manifest.json").read_text()).keys() == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
