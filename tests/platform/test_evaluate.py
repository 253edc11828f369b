from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rankloom.errors import DataError, PromotionError
from rankloom.evaluate import base_of, evaluate_adapter, held_out_rows
from rankloom_registry import AdapterNotFoundError, ArtifactError, Registry


@pytest.fixture
def registry(world: Any) -> Registry:
    return Registry.open(world.registry)


def test_an_adapter_is_measured_as_its_search_measured_it(world: Any, registry: Registry) -> None:
    seen: list[tuple[str, int, int]] = []
    result = evaluate_adapter(
        registry, world.adapters[0], base_too=True, samples=2, on_batch=lambda *done: seen.append(done)
    )
    adapter = registry.adapter(world.adapters[0])
    assert result.eval_loss == adapter.eval_loss
    assert result.base_loss is not None and result.base_loss > result.eval_loss + 0.3
    assert result.dataset["rows"] == 12 and result.dataset["source"] == "held-out split of negation"
    assert result.to_dict()["gain_over_base"] == result.base_loss - result.eval_loss
    assert {what for what, _, _ in seen} == {"adapter", "base"} and seen[-1] == ("base", 12, 12)
    assert [set(sample) for sample in result.samples] == [{"prompt", "expected", "base", "adapter"}] * 2
    assert result.samples[0]["adapter"] != result.samples[0]["base"]

    (recorded,) = registry.evaluations(adapter.adapter_id)
    assert recorded.metrics == {"eval_loss": result.eval_loss, "base_loss": result.base_loss, "tokens": result.tokens}
    assert recorded.dataset == result.dataset


def test_the_same_rows_from_a_file_give_the_same_loss(world: Any, registry: Registry) -> None:
    split = evaluate_adapter(registry, world.adapters[0])
    file = evaluate_adapter(registry, world.adapters[0], dataset=str(world.eval_rows))
    assert (file.eval_loss, file.tokens, file.base_loss) == (split.eval_loss, split.tokens, None)
    assert file.dataset == {**split.dataset, "source": str(world.eval_rows)}
    assert len(registry.evaluations(world.adapters[0])) == 2


def test_the_split_is_found_beside_the_registry(
    world: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The search recorded a relative path, and the folder has moved since."""
    monkeypatch.chdir(tmp_path)
    adapter = registry.adapter(world.adapters[0])
    base = base_of(registry, adapter)
    assert len(held_out_rows(registry, adapter, None, base).tokens) == 12
    shutil.rmtree(world.registry.with_suffix(".runs"))
    with pytest.raises(DataError, match=r"held-out split of 'negation' is not in .*give --dataset FILE"):
        held_out_rows(registry, adapter, None, base)


def test_an_imported_adapter_needs_a_dataset(world: Any, registry: Registry) -> None:
    from rankloom_registry import AdapterAdded

    adapter = registry.adapter(world.adapters[0])
    registry.record(
        AdapterAdded(
            adapter_id="imported",
            name="elsewhere",
            base_content_root=adapter.base_content_root,
            params=adapter.params,
            metrics={},
            artifact_sha256=adapter.artifact_sha256,
        )
    )
    with pytest.raises(DataError, match="give --dataset FILE"):
        evaluate_adapter(registry, "imported")
    measured = evaluate_adapter(registry, "imported", dataset=str(world.eval_rows))
    assert measured.eval_loss == pytest.approx(adapter.eval_loss, rel=1e-3)


def test_rows_that_cannot_be_used(world: Any, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "wrong.jsonl").write_text(json.dumps({"question": "a"}) + "\n")
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "the girl " * 50, "completion": "boy"}) + "\n")
    for name, message in {"wrong.jsonl": "found: question", "long.jsonl": "no row of .* has loss"}.items():
        with pytest.raises(DataError, match=message):
            evaluate_adapter(registry, world.adapters[0], dataset=str(tmp_path / name))
    assert registry.evaluations(world.adapters[0]) == []


def test_another_base_is_refused(world: Any, registry: Registry, tmp_path: Path) -> None:
    moved = shutil.copytree(world.base, tmp_path / "moved")
    adapter = registry.adapter(world.adapters[0])
    assert base_of(registry, adapter, str(moved)).path == moved
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PromotionError, match="give the folder of the right base with --base") as caught:
        evaluate_adapter(registry, world.adapters[0], base=str(moved))
    assert adapter.base_content_root[:16] in str(caught.value) and str(moved) in str(caught.value)
    assert registry.evaluations(world.adapters[0]) == []


def test_an_adapter_that_is_not_there_or_has_changed(world: Any, registry: Registry) -> None:
    with pytest.raises(AdapterNotFoundError):
        evaluate_adapter(registry, "no-such-adapter")
    path = registry.adapter(world.adapters[0]).artifact_path
    assert path is not None
    weights = path / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError):
        evaluate_adapter(registry, world.adapters[0])
    assert registry.evaluations(world.adapters[0]) == []
