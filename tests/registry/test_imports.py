from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest

from rankloom_registry import (
    ArtifactError,
    FingerprintError,
    InvalidNameError,
    Registry,
    RegistryWriteError,
    discard,
    import_adapter,
)

Folder = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path, write_safetensors: Folder) -> Path:
    """A base that the adapters of `adapter_folder` fit."""
    weights = {"q_proj.weight": ("F32", np.eye(4, dtype=np.float32)), "norm.weight": ("F32", np.ones(4, np.float32))}
    write_safetensors(tmp_path / "base" / "model.safetensors", weights)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return tmp_path / "base"


def test_an_adapter_from_elsewhere_is_registered(registry: Registry, adapter_folder: Folder, model: Path) -> None:
    folder = adapter_folder("mine", target_modules=["v_proj", "q_proj"], lora_dropout=0.1)
    steps: list[tuple[int, int]] = []
    adapter, new = import_adapter(
        registry, folder, model, identity="org/base@1", progress=lambda done, total: steps.append((done, total))
    )
    assert new and adapter == registry.adapter("mine")
    assert (adapter.trial_id, adapter.search_id, adapter.eval_loss, adapter.status) == (None, None, None, "available")
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout, adapter.use_rslora) == (2, 4, 0.1, False)
    assert adapter.target_modules == "q_proj+v_proj"
    # B·A of constant factors has rank 1, 16 elements of 2 · 0.25, and a scale of 2.
    assert adapter.effective_rank == pytest.approx(1) and adapter.update_norm == pytest.approx(4.0)
    assert registry.adapters(where="update_norm > 3.9 and effective_rank < 1.1") == [adapter]
    assert (registry.checkout(adapter) / "adapter_config.json").read_bytes() == (
        folder / "adapter_config.json"
    ).read_bytes()
    base = registry.base(adapter.base_content_root)
    assert (base.identity, base.adapters, base.tensors) == ("org/base@1", 1, 2)
    assert registry.base_leaves(base.content_root).keys() == {"q_proj.weight", "norm.weight"}
    assert steps[-1][0] == steps[-1][1] > 0
    lineage = registry.lineage("mine")
    assert [step.what for step in lineage.steps()] == ["base", "adapter"]
    assert lineage.steps()[-1].text == "imported, available"
    assert lineage.events[0].why == f"imported from {folder}"


def test_the_same_files_on_the_same_base_are_one_adapter(
    registry: Registry, adapter_folder: Folder, model: Path
) -> None:
    folder = adapter_folder("mine")
    first, _ = import_adapter(registry, folder, model)
    again, new = import_adapter(registry, folder, model, name="other")
    assert (again, new) == (first, False)
    changed, new = import_adapter(registry, adapter_folder("changed", weight=0.25), model)
    assert new and changed.adapter_id != first.adapter_id
    discard(registry, [first.adapter_id])
    back, new = import_adapter(registry, folder, model, name="back")
    assert new and back.adapter_id != first.adapter_id and back.artifact_sha256 == first.artifact_sha256
    assert registry.adapter(first.adapter_id).status == "discarded"


def test_what_is_refused_leaves_nothing(
    registry: Registry, adapter_folder: Folder, model: Path, tmp_path: Path, write_safetensors: Folder
) -> None:
    folder = adapter_folder("mine")
    other = tmp_path / "other"
    write_safetensors(other / "model.safetensors", {"q_proj.weight": ("F32", np.eye(3, dtype=np.float32))})
    with pytest.raises(ArtifactError, match="shape"):
        import_adapter(registry, folder, other)
    with pytest.raises(FingerprintError):
        import_adapter(registry, folder, folder)
    with pytest.raises(InvalidNameError):
        import_adapter(registry, folder, model, name="a b")
    with pytest.raises(InvalidNameError):
        import_adapter(registry, folder.rename(tmp_path / "a b"), model)
    shutil.move(tmp_path / "a b", folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ArtifactError, match="tokenizer"):
        import_adapter(registry, folder, model)
    assert registry.events() == [] and not list(registry.path.parent.glob("*.artifacts/sha256/*/*"))
    _, new = import_adapter(registry, folder, model, allow=["tokenizer"])
    assert new


def test_a_registry_is_made_only_for_what_passed_every_check(
    adapter_folder: Folder, model: Path, tmp_path: Path
) -> None:
    folder = adapter_folder("mine", alpha_pattern={"(": 2})
    path = tmp_path / "kept" / "registry.duckdb"
    with pytest.raises(RegistryWriteError, match="does not exist"):
        import_adapter(path, folder, model, progress=lambda done, total: pytest.fail("hashed for nothing"))
    path.parent.mkdir()
    for spoiled, reason in ((folder, "regular expression"), (adapter_folder("loud", weight=np.inf), "Inf")):
        with pytest.raises(ArtifactError, match=reason):
            import_adapter(path, spoiled, model)
    assert list(path.parent.iterdir()) == []
    adapter, _ = import_adapter(path, adapter_folder("mine"), model)
    assert import_adapter(path, adapter_folder("mine"), model) == (adapter, False)
    assert Registry.open(path).adapters() == [adapter]


def test_a_refused_import_leaves_an_older_registry_as_it_is(
    adapter_folder: Folder, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "registry.duckdb"
    duckdb.connect(str(path)).close()  # of no schema yet
    before = path.read_bytes()
    with pytest.raises(InvalidNameError):
        import_adapter(path, adapter_folder("mine"), model, name="a b")
    assert path.read_bytes() == before
    assert import_adapter(path, adapter_folder("mine"), model).new
