from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankloom_registry import AdapterAdded, Registry, discard

Rankloom = Callable[..., Any]


def test_the_weights_are_compared(rankloom: Rankloom, world: Any) -> None:
    flags = ("adapters", "compare", *world.adapters, "--registry", world.registry)
    done = rankloom(*flags)
    assert done.code == 0, done.err
    for title in ("eval_loss by step", "weights", "effective rank", "similarity of the updates"):
        assert title in done.out
    assert "q_proj" in done.out and "model.layers.0" not in done.out
    assert "model.layers.0.self_attn.q_proj" in rankloom(*flags, "--all").out

    found = rankloom(*flags, "--json").json
    assert found.keys() == {"adapters", "differences", "curves", "weights", "similarity"}
    good, slow = (found["weights"][id_] for id_ in world.adapters)
    assert [at["step"] for at in found["curves"][world.adapters[0]]] == [4, 8, 12]
    assert len(good["modules"]) == len(slow["modules"]) == 14  # 7 linear modules in each of 2 layers
    assert all(1 <= module["effective_rank"] <= module["r"] + 1e-9 for module in good["modules"])
    assert {module["r"] for module in slow["modules"]} == {2}
    assert good["update_norm"] > slow["update_norm"] > 0  # the good one learned 200 times as fast
    assert good["relative_norm"] is None and good["dead_modules"] == 0
    (pair,) = found["similarity"]
    assert (pair["first"], pair["second"]) == world.adapters
    assert -1 <= pair["cosine"] <= 1 and 0 <= pair["column_overlap"] <= 1 and len(pair["modules"]) == 14


def test_updates_are_measured_against_the_base(rankloom: Rankloom, world: Any) -> None:
    flags = ("adapters", "compare", *world.adapters, "--base", world.base, "--registry", world.registry)
    found = rankloom(*flags, "--json").json["weights"][world.adapters[0]]
    assert found["relative_norm"] > 0 and all(module["relative_norm"] > 0 for module in found["modules"])
    shown = rankloom(*flags).out
    assert f"{found['relative_norm']:.4f}" in shown


def test_another_base_is_noticed(rankloom: Rankloom, world: Any, tmp_path: Path) -> None:
    other = shutil.copytree(world.base, tmp_path / "other")
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    flags = ("adapters", "compare", *world.adapters, "--registry", world.registry, "--base")
    assert rankloom(*flags, world.base).err == ""
    done = rankloom(*flags, other)
    assert done.code == 0 and all(f"is not the base of {id_}" in done.err for id_ in world.adapters)


def test_without_weights(rankloom: Rankloom, world: Any) -> None:
    flags = ("--registry", world.registry)
    found = rankloom("adapters", "compare", *world.adapters, "--no-weights", "--json", *flags).json
    assert found["weights"] == {} and found["similarity"] == [] and found["differences"]["r"] == [4, 2]
    discard(Registry.open(world.registry), [world.adapters[1]])
    done = rankloom("adapters", "compare", *world.adapters, "--json", *flags)
    assert done.code == 0 and f"{world.adapters[1]} is discarded" in done.err
    assert list(done.json["weights"]) == [world.adapters[0]] and done.json["similarity"] == []
    assert "similarity" not in rankloom("adapters", "compare", *world.adapters, *flags).out


def test_an_adapter_with_itself(rankloom: Rankloom, world: Any) -> None:
    registry = Registry.open(world.registry)
    adapter = registry.adapter(world.adapters[0])
    registry.record(
        AdapterAdded(
            adapter_id="twin",
            name="twin",
            base_content_root=adapter.base_content_root,
            params=adapter.params,
            metrics={},
            artifact_sha256=adapter.artifact_sha256,
        )
    )
    done = rankloom("adapters", "compare", adapter.adapter_id, "twin", "--json", "--registry", world.registry)
    (pair,) = done.json["similarity"]
    assert [pair[name] for name in ("cosine", "column_overlap", "row_overlap")] == pytest.approx([1, 1, 1])


def test_files_that_are_gone_are_a_message(rankloom: Rankloom, world: Any) -> None:
    registry = Registry.open(world.registry)
    shutil.rmtree(registry.artifacts.path(registry.adapter(world.adapters[0]).artifact_sha256))
    flags = ("adapters", "compare", *world.adapters, "--registry", world.registry)
    done = rankloom(*flags)
    assert done.code == 1 and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert rankloom(*flags, "--no-weights").code == 0
