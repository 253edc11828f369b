from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rankloom_dashboard import attention, upkeep
from rankloom_dashboard.jobs.verifying import verify
from rankloom_registry import BaseRecord, BaseSeen, Registry, fingerprint_base


def test_what_lies_on_the_disk_is_counted_and_what_is_gone_is_named(made) -> None:
    whole = upkeep.inspect(made.path)
    assert whole.missing == ()
    files = [made.path, made.path.with_name("registry.events.jsonl")]
    files += [file for file in made.path.with_name("registry.artifacts").rglob("sha256/**/*") if file.is_file()]
    assert whole.bytes == sum(file.stat().st_size for file in files)
    with Registry.open(made.path) as registry:
        shutil.rmtree(registry.adapter(made.second).artifact_path)
        (registry.adapter(made.prior).artifact_path / "manifest.json").unlink()
    found = upkeep.inspect(made.path)
    assert {adapter_id for adapter_id, _ in found.missing} == {made.second, made.prior}
    assert found.bytes < whole.bytes


@pytest.fixture
def base(tmp_path: Path) -> BaseRecord:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": np.arange(64, dtype=np.float32)}, folder / "model.safetensors")
    with Registry.open(tmp_path / "bases.duckdb", create=True) as registry:
        registry.record(BaseSeen(base=fingerprint_base(folder)))
        return registry.bases()[0]


def test_a_base_that_drifted_or_is_gone_is_told_from_one_that_is_not(base: BaseRecord) -> None:
    folder = Path(base.identity)
    assert upkeep.base_state(base) == "as recorded"
    assert upkeep.base_state(replace(base, identity=f"{folder}x")) == "not there"
    assert upkeep.base_state(replace(base, identity="org/base@0123")) == "not looked at"
    assert upkeep.base_state(replace(base, identity="org/base")) == "not looked at"
    assert upkeep.base_state(replace(base, sampled=None)) == "not looked at"
    save_file({"weight": np.arange(64, dtype=np.float32) + 1}, folder / "model.safetensors")
    assert upkeep.base_state(base) == "differs"
    (folder / "model.safetensors").unlink()
    assert upkeep.base_state(base) == "differs"


def test_the_inspector_looks_once_and_again_when_that_is_old(made) -> None:
    inspector = upkeep.Inspector(again_s=60)
    assert inspector.look(made.path) is None
    inspector.wait()
    first = inspector.look(made.path)
    assert first is not None and inspector.look(made.path) is first
    hasty = upkeep.Inspector(again_s=-1)
    hasty.look(made.path)
    hasty.wait()
    before = hasty.look(made.path)
    hasty.wait()
    assert hasty.look(made.path) is not before


def test_a_registry_that_is_gone_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    inspector = upkeep.Inspector()
    inspector.look(tmp_path / "none.duckdb")
    inspector.wait()
    found = inspector.look(tmp_path / "none.duckdb")
    assert found is not None and "none.duckdb" in found.problem


def test_verifying_names_the_files_that_changed(made) -> None:
    heard: list[dict] = []
    order = {"registry": str(made.path)}
    assert verify(order, heard.append) == {"verified": 3, "failed": []}
    assert [told["progress"][1:] for told in heard] == [[0, 3], [1, 3], [2, 3]]
    with Registry.open(made.path) as registry:
        weights = registry.adapter(made.second).artifact_path / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    found = verify(order, heard.append)
    assert [one["adapter_id"] for one in found["failed"]] == [made.second]
    assert "adapter_model.safetensors" in found["failed"][0]["problem"]


def test_what_needs_attention_is_said_once_the_worst_first(made, hostile) -> None:
    summary = Registry.open(made.path).summary()
    only_failed = attention.concerns(summary, None, None)
    assert [concern.headline for concern in only_failed] == ["1 trial failed"]
    assert only_failed[0].rows[0]["message"] == "RuntimeError: loss is not finite at step 3"
    root = summary.bases[0].content_root
    found = upkeep.Inspection(at=0.0, missing=((made.best, "lora-tiny-5"),), bases={root: "differs"})
    wrong = {"verified": 3, "failed": [{"adapter_id": made.second, "name": "x", "problem": "y" * 9000}]}
    every = attention.concerns(summary, found, wrong)
    assert [concern.level for concern in every] == ["error", "error", "error", "warning"]
    assert len(every[1].rows[0]["what"]) < 2100
    moved = attention.concerns(summary, replace(found, missing=(), bases={root: "not there"}), None)
    assert [concern.level for concern in moved] == ["warning", "warning"]
    gone = replace(found, missing=(), bases={root: "not there"})
    ordered = attention.concerns(summary, gone, None, lost=summary.searches)
    assert [concern.level for concern in ordered] == ["error", "warning", "warning"]
    # What others wrote is for the tables: a headline is read as Markdown.
    for concern in attention.concerns(Registry.open(hostile.path).summary(), None, None):
        assert "evil" not in concern.headline + concern.advice


def test_a_base_that_cannot_even_be_looked_at_hides_nothing_else(made, base: BaseRecord) -> None:
    nowhere = f"/{'x' * 300}"  # longer than a name can be
    with Registry.open(made.path) as registry:
        registry.record(BaseSeen(base=replace(fingerprint_base(base.identity), identity=nowhere)))
        shutil.rmtree(registry.adapter(made.second).artifact_path)
    found = upkeep.inspect(made.path)
    assert {adapter_id for adapter_id, _ in found.missing} == {made.second}
    assert found.bases[base.content_root] == "not there"
