from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankloom.config import load_config
from rankloom.errors import ConfigError
from rankloom.export_config import as_python, as_yaml
from rankloom_registry import AdapterAdded, Registry
from rankloom_spaces import SpaceError, load_space


@pytest.fixture
def registry(world: Any) -> Registry:
    return Registry.open(world.registry)


def imported(registry: Registry, like: str, **params: Any) -> None:
    adapter = registry.adapter(like)
    registry.record(
        AdapterAdded(
            adapter_id="imported",
            name="imported",
            base_content_root=adapter.base_content_root,
            params=params,
            metrics={},
            artifact_sha256=adapter.artifact_sha256,
        )
    )


def test_the_search_file_is_one_trial_of_the_same_search(registry: Registry, world: Any, tmp_path: Path) -> None:
    adapter = registry.adapter(world.adapters[1])
    (tmp_path / "search.yaml").write_text(as_yaml(registry, adapter))
    config = load_config(tmp_path / "search.yaml")
    was = registry.search("negation").config
    assert (config.model_name_or_path, config.model_revision, config.num_samples) == (str(world.base), None, 1)
    assert (config.dataset, config.seed) == (was["dataset"], was["seed"])
    assert config.training.model_dump() == was["training"] and config.quantization.model_dump() == was["quantization"]
    space = load_space(config.space)
    assert space.resolve(space.prior()) | {"seed": adapter.seed} == adapter.params


def test_a_hub_model_keeps_its_commit(registry: Registry, world: Any) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    adapter = dataclasses.replace(registry.adapter(world.adapters[0]), base_identity=f"org/model@{commit}")
    values = yaml.safe_load(as_yaml(registry, adapter))
    assert (values["model_name_or_path"], values["model_revision"]) == ("org/model", commit)
    namespace: dict[str, Any] = {}
    exec(as_python(adapter, registry.checkout(adapter)), namespace)
    assert (namespace["MODEL"], namespace["REVISION"]) == ("org/model", commit)


def test_an_imported_adapter_becomes_a_space_of_one_point(registry: Registry, world: Any) -> None:
    imported(
        registry, world.adapters[0], r=4, lora_alpha=8, use_rslora=True, lora_dropout=0.0,
        target_modules=["q_proj", "v_proj"],
    )  # fmt: skip
    adapter = registry.adapter("imported")
    space = load_space(yaml.safe_load(as_yaml(registry, adapter)))
    resolved = space.resolve({})
    assert (resolved["r"], resolved["lora_alpha"], resolved["use_rslora"]) == (4, 8, True)
    assert resolved["target_modules"] == "q_proj+v_proj"
    with pytest.raises(SpaceError):
        as_yaml(registry, dataclasses.replace(adapter, params={"r": 4, "target_modules": r".*\.(q|v)_proj"}))


def test_the_python_makes_the_configuration_that_was_saved(registry: Registry, world: Any) -> None:
    from peft import LoraConfig, PeftConfig

    adapter = registry.adapter(world.adapters[0])
    folder = registry.checkout(adapter)
    namespace: dict[str, Any] = {}
    exec(as_python(adapter, folder), namespace)
    made, saved = namespace["config"], PeftConfig.from_pretrained(folder)
    assert isinstance(made, LoraConfig)
    by_itself = {"base_model_name_or_path", "inference_mode", "peft_version"}
    assert {name: value for name, value in made.to_dict().items() if name not in by_itself} == {
        name: value for name, value in saved.to_dict().items() if name not in by_itself
    }
    assert (namespace["LEARNING_RATE"], namespace["SEED"]) == (adapter.learning_rate, adapter.seed)


def test_fields_beyond_the_usual_are_kept(registry: Registry, world: Any, tmp_path: Path) -> None:
    adapter = registry.adapter(world.adapters[0])
    (tmp_path / "adapter_config.json").write_text(
        '{"r": 4, "lora_alpha": 8, "lora_dropout": 0.5, "use_rslora": true, "target_modules": ".*\\\\.q_proj",'
        ' "rank_pattern": {"q_proj": 2}, "modules_to_save": ["lm_head"], "bias": "none", "alpha_pattern": {}}'
    )
    namespace: dict[str, Any] = {}
    text = as_python(adapter, tmp_path)
    exec(text, namespace)
    config = namespace["config"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 8, 0.5, True)
    assert (config.target_modules, config.rank_pattern) == (r".*\.q_proj", {"q_proj": 2})
    assert config.modules_to_save == ["lm_head"] and "bias" not in text


def test_without_files_a_group_must_be_one_that_peft_knows(registry: Registry, world: Any) -> None:
    adapter = registry.adapter(world.adapters[0])
    namespace: dict[str, Any] = {}
    exec(as_python(adapter, None), namespace)
    assert (namespace["config"].target_modules, namespace["config"].r) == ("all-linear", adapter.r)
    pair = dataclasses.replace(adapter, params=adapter.params | {"target_modules": "v_proj+q_proj"})
    exec(as_python(pair, None), namespace)
    assert namespace["config"].target_modules == {"q_proj", "v_proj"}
    for group in ("attention", "mlp+q_proj"):
        gone = dataclasses.replace(adapter, params=adapter.params | {"target_modules": group})
        with pytest.raises(ConfigError, match="--format yaml"):
            as_python(gone, None)
