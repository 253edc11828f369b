from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankloom_registry import Registry

Rankloom = Callable[..., Any]


@pytest.fixture
def foreign(world: Any, tmp_path: Path) -> Path:
    """An adapter folder as PEFT saved it, of which no registry knows."""
    registry = Registry.open(world.registry)
    kept = registry.checkout(registry.adapter(world.adapters[0]))
    return Path(shutil.copytree(kept, tmp_path / "foreign", ignore=shutil.ignore_patterns("manifest.json")))


def test_an_adapter_is_imported(rankloom: Rankloom, world: Any, foreign: Path, tmp_path: Path) -> None:
    command = ("adapters", "import", foreign, "--base", world.base)
    done = rankloom(*command)
    assert done.code == 0 and done.err == "" and "foreign" in done.out and str(world.base) in done.out
    known = Registry.open(world.registry).adapter(world.adapters[0])
    (adapter,) = Registry.open(tmp_path / "registry.duckdb").adapters()
    assert (adapter.name, adapter.r, adapter.trial_id, adapter.eval_loss) == ("foreign", 4, None, None)
    assert (adapter.base_content_root, adapter.artifact_sha256) == (known.base_content_root, known.artifact_sha256)
    assert rankloom("base", "check", "foreign", world.base).code == 0
    assert rankloom("adapters", "verify", "foreign").code == 0
    again = rankloom(*command, "--name", "other", "--json")
    assert again.json["adapter_id"] == adapter.adapter_id and "registered already" in again.err
    # A registry that trained these files knows them by their content.
    there = rankloom(*command, "--json", "--registry", world.registry)
    assert there.json["adapter_id"] == world.adapters[0]


def test_an_import_is_refused(rankloom: Rankloom, world: Any, foreign: Path) -> None:
    command = ("adapters", "import", foreign, "--base", world.base, "--registry", world.registry)
    (foreign / "chat_template.jinja").write_text("{{ messages }}")
    refused = rankloom(*command)
    assert refused.code == 1 and refused.out == "" and "tokenizer" in refused.err and refused.err.count("\n") == 1
    assert rankloom(*command, "--allow", "everything").code == 2
    assert rankloom(*command, "--allow", "tokenizer").code == 0
    (foreign / "adapter_model.bin").write_bytes(b"")
    assert "adapter_model.bin" in rankloom(*command, "--allow", "tokenizer").err
    assert rankloom("adapters", "import", foreign).code == 2  # no base


def test_a_refused_import_makes_no_registry(rankloom: Rankloom, world: Any, foreign: Path, tmp_path: Path) -> None:
    (foreign / "chat_template.jinja").write_text("{{ messages }}")
    before = sorted(tmp_path.rglob("*"))
    assert rankloom("adapters", "import", foreign, "--base", world.base).code == 1
    assert sorted(tmp_path.rglob("*")) == before
    (foreign / "chat_template.jinja").unlink()
    refused = rankloom("adapters", "import", foreign, "--base", world.base, "--registry", "none/registry.duckdb")
    assert refused.code == 1 and "does not exist" in refused.err and "hashing" not in refused.err
    assert rankloom("adapters", "import", foreign, "--base", world.base).code == 0


def test_a_configuration_is_exported(rankloom: Rankloom, world: Any, tmp_path: Path) -> None:
    command = ("adapters", "export-config", world.adapters[0], "--registry", world.registry)
    done = rankloom(*command)
    assert done.code == 0 and done.err == ""
    (tmp_path / "again.yaml").write_text(done.out)
    plan = rankloom("plan", "again.yaml", "--json")
    assert plan.code == 0 and plan.json["num_samples"] == 1, plan.err
    done = rankloom(*command, "--format", "python")
    assert done.code == 0 and done.err == ""
    namespace: dict[str, Any] = {}
    exec(done.out, namespace)
    assert namespace["config"].r == 4
    assert rankloom(*command, "--format", "json").code == 2
