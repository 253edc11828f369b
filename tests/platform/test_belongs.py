from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rankloom.belongs import TensorChange, check_base, find_base
from rankloom.errors import ModelError
from rankloom_registry import AdapterDiscarded, BaseSeen, FingerprintError, Registry, read_safetensors_header
from rankloom_registry.bases.fingerprint import read_base

TOUCHED = "model.layers.1.mlp.up_proj.weight"
UNTOUCHED = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def registry(world: Any) -> Registry:
    """The trained search's registry, with its base recorded tensor by tensor."""
    registry = Registry.open(world.registry)
    fingerprint, leaves = read_base(world.base, identity=str(world.base))
    registry.record(BaseSeen(base=fingerprint, leaves=leaves))
    return registry


def flip_one_bit(folder: Path, name: str) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = folder / index["weight_map"][name]
    header = read_safetensors_header(file)
    content = bytearray(file.read_bytes())
    content[header.data_start + header.tensors[name].end - 1] ^= 1
    file.write_bytes(content)


def test_the_same_weights_in_other_files_belong(world: Any, registry: Registry, sharded_base: Path) -> None:
    for base in (world.base, sharded_base):
        found = check_base(registry, world.adapters[0], str(base))
        assert found.belongs and found.touched_root_agrees and found.tensors_known
        assert (found.tensors, found.other_differences, found.touched) == ((), (), 14)
        assert found.content_root == found.expected_content_root


@pytest.mark.parametrize(("name", "touched"), [(TOUCHED, True), (UNTOUCHED, False)])
def test_one_flipped_bit_is_named(world: Any, registry: Registry, sharded_base: Path, name: str, touched: bool) -> None:
    flip_one_bit(sharded_base, name)
    calls: list[tuple[int, int]] = []
    found = check_base(
        registry, world.adapters[0], str(sharded_base), progress=lambda done, total: calls.append((done, total))
    )
    assert not found.belongs and found.content_root != found.expected_content_root
    assert found.tensors == (TensorChange(name=name, change="changed", touched=touched),)
    assert found.touched_root_agrees is not touched
    assert calls[-1][0] == calls[-1][1] > 0
    assert json.loads(json.dumps(found.to_dict()))["tensors"] == [
        {"name": name, "change": "changed", "touched": touched}
    ]


def test_missing_and_extra_tensors_are_named(world: Any, registry: Registry, tmp_path: Path) -> None:
    other = shutil.copytree(world.base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["renamed"] = weights.pop(TOUCHED)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    found = check_base(registry, world.adapters[0], str(other))
    assert found.tensors == (
        TensorChange(name=TOUCHED, change="missing", touched=True),
        TensorChange(name="renamed", change="extra", touched=False),
    )
    assert found.touched_root_agrees is False


def test_a_base_that_was_recorded_without_its_tensors_is_judged_as_a_whole(world: Any, sharded_base: Path) -> None:
    registry = Registry.open(world.registry)
    root = registry.adapter(world.adapters[0]).base_content_root
    assert registry.base_leaves(root) == {}
    whole = check_base(registry, world.adapters[0], str(world.base))
    assert whole.belongs and whole.touched == 14  # the tensors at hand are the recorded ones
    flip_one_bit(sharded_base, TOUCHED)
    found = check_base(registry, world.adapters[0], str(sharded_base))
    assert not found.belongs and not found.tensors_known
    assert (found.tensors, found.touched, found.touched_root_agrees) == ((), None, None)
    assert "recorded" in found.touched_unknown


def test_without_the_adapters_files_the_tensors_are_still_named(
    world: Any, registry: Registry, sharded_base: Path
) -> None:
    registry.record(AdapterDiscarded(adapter_id=world.adapters[0], reason="not needed"))
    flip_one_bit(sharded_base, TOUCHED)
    found = check_base(registry, world.adapters[0], str(sharded_base))
    assert found.tensors == (TensorChange(name=TOUCHED, change="changed", touched=None),)
    assert found.touched is None and "discarded" in found.touched_unknown


def test_what_lies_beside_the_weights_is_compared_too(world: Any, registry: Registry, sharded_base: Path) -> None:
    config = json.loads((sharded_base / "config.json").read_text())
    (sharded_base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    (sharded_base / "chat_template.jinja").write_text("{{ another }}")
    found = check_base(registry, world.adapters[0], str(sharded_base))
    assert found.belongs and found.other_differences == ("config.json", "chat template")


def test_a_base_is_found_as_file_folder_or_not_at_all(world: Any, tmp_path: Path) -> None:
    file = world.base / "model.safetensors"
    assert find_base(str(file)).path == file and find_base(str(world.base)).identity == str(world.base)
    with pytest.raises(ModelError, match="no such folder"):
        find_base(str(tmp_path / "none"))


def test_no_pickle_is_a_base(world: Any, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(FingerprintError, match="is a pickle"):
            check_base(registry, world.adapters[0], str(path))
