from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rankloom_registry import BaseSeen, Registry
from rankloom_registry.bases.fingerprint import read_base

Rankloom = Callable[..., Any]


def change(base: Path, *names: str) -> None:
    for file in base.glob("*.safetensors"):
        weights = load_file(file)
        for name in weights.keys() & set(names):
            weights[name].view(-1)[0] += 1
        save_file(weights, file, metadata={"format": "pt"})


def record_tensors(world: Any) -> None:
    fingerprint, leaves = read_base(world.base, identity=str(world.base))
    Registry.open(world.registry).record(BaseSeen(base=fingerprint, leaves=leaves))


def test_a_base_is_fingerprinted(rankloom: Rankloom, world: Any) -> None:
    assert "content_root" in rankloom("base", "fingerprint", world.base).out
    found = rankloom("base", "fingerprint", world.base, "--json").json
    assert found["identity"] == str(world.base) and len(found["content_root"]) == len(found["sampled"]) == 64
    assert found["quantization_sha256"] is None and found["tokenizer_sha256"] and found["config"]
    file = rankloom("base", "fingerprint", world.base / "model.safetensors", "--json").json
    assert file == found | {"identity": str(world.base / "model.safetensors")}


def test_a_base_that_belongs(rankloom: Rankloom, world: Any, sharded_base: Path) -> None:
    for base in (world.base, sharded_base):
        done = rankloom("base", "check", world.adapters[0], base, "--registry", world.registry)
        assert done.code == 0 and "belongs to" in done.out
    found = rankloom("base", "check", world.adapters[0], world.base, "--registry", world.registry, "--json")
    assert found.code == 0 and found.json["belongs"] is True and found.json["touched_root_agrees"] is True


def test_a_base_that_changed_is_refused_and_its_tensors_named(
    rankloom: Rankloom, world: Any, sharded_base: Path
) -> None:
    record_tensors(world)
    names = ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"]
    change(sharded_base, *names)
    check = ("base", "check", world.adapters[0], sharded_base, "--registry", world.registry)
    done = rankloom(*check)
    assert done.code == 1 and "does not belong to" in done.out and "tensors: 2 changed" in done.out
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.startswith("model.")}
    assert rows == {names[0]: ["changed", "yes"], names[1]: ["changed", "no"]}
    assert "modifies 14 tensors: they are not all as they were recorded" in done.out
    found = rankloom(*check, "--json")
    assert found.code == 1 and found.json["belongs"] is False
    assert found.json["content_root"] != found.json["expected_content_root"]
    assert [(tensor["name"], tensor["touched"]) for tensor in found.json["tensors"]] == [
        (names[0], True),
        (names[1], False),
    ]


def test_many_changed_tensors_are_shown_in_part(
    rankloom: Rankloom, world: Any, sharded_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankloom.cli.base.SHOWN", 1)
    record_tensors(world)
    change(sharded_base, "model.norm.weight", "model.layers.0.input_layernorm.weight")
    done = rankloom("base", "check", world.adapters[0], sharded_base, "--registry", world.registry)
    assert done.code == 1 and "… and 1 more" in done.out and "model.norm.weight" not in done.out
    assert "they are all as they were recorded" in done.out


def test_what_is_not_known_is_said(rankloom: Rankloom, world: Any, sharded_base: Path) -> None:
    change(sharded_base, "model.norm.weight")
    (sharded_base / "tokenizer.json").write_text("{}")
    done = rankloom("base", "check", world.adapters[0], sharded_base, "--registry", world.registry)
    assert done.code == 1 and "does not belong to" in done.out
    assert "Which tensors differ is not known" in done.out
    assert "Not as they were recorded, either: tokenizer" in done.out


def test_what_is_no_base_is_refused(rankloom: Rankloom, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for path in (tmp_path, "pytorch_model.bin"):
        done = rankloom("base", "fingerprint", path)
        assert done.code == 1 and "is a pickle" in done.err and done.out == ""


def test_a_gguf_file_is_fingerprinted_as_it_is_stored(rankloom: Rankloom, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    values = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = rankloom("base", "fingerprint", "tiny.gguf", "--as-stored", "--json").json
    assert found["identity"] == f"gguf:{tmp_path / 'tiny.gguf'}"
    assert (found["tensors"], found["parameters"], found["dtype"]) == (1, 128, "q8_0")
    assert found["quantization_sha256"] and found["config"]["model_type"] == "llama"
