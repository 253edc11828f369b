"""An adapter's configuration as a file to go on from: a search of that one point, or Python for PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from rankloom.config import SearchConfig, parse_config
from rankloom.errors import ConfigError
from rankloom.models import split_identity
from rankloom_registry import Adapter, Registry
from rankloom_spaces import PARAMETERS, load_space, target_groups

# What a search file says of the model, the data and the training; the rest says how to search.
_KEPT = ("dataset", "eval_dataset", "eval_fraction", "engine", "seed", "training", "quantization")
# PEFT's fields that decide what is trained, with the values that go without saying.
_PEFT: dict[str, Any] = {
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "init_lora_weights": True,
    "modules_to_save": None,
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def as_yaml(registry: Registry, adapter: Adapter) -> str:
    """Return a search file that trains an adapter's configuration again, and nothing else.

    An adapter that was imported comes with no data and no training: the file is then a search space of one point.

    Args:
        registry: Where the adapter is registered.
        adapter: The adapter.

    Raises:
        SpaceError: Its configuration is none that a space can hold, such as a pattern for the target modules.
    """
    space = _space(adapter)
    lines = [f"# adapter {adapter.adapter_id} ({adapter.name})"]
    values: dict[str, Any]
    if adapter.search_id is None:
        lines.append(f"# imported, on the base {adapter.base_identity!r}")
        lines.append("# a space of one point: name this file as `space` in a search file")
        values = space
    else:
        search = registry.search(adapter.search_id)
        config = parse_config(search.config, source=f"search {search.search_id}")
        plain = config.model_dump(mode="json", include=set(_KEPT), exclude_defaults=True)
        name, revision = split_identity(adapter.base_identity)
        lines.append(f"# one trial with the settings of search {search.name} ({search.search_id})")
        if str(config.dataset).startswith("<"):
            lines.append(f"# the search was given its dataset in Python, as {config.dataset!r}: name a file here")
        model = {"model_name_or_path": name} | ({"model_revision": revision} if revision else {})
        order = [field for field in SearchConfig.model_fields if field in plain]
        values = {**model, **{field: plain[field] for field in order}, "num_samples": 1, "space": space}
    return "\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)


def as_python(adapter: Adapter, folder: Path | None) -> str:
    """Return a Python module whose `config` is the PEFT configuration of an adapter.

    Args:
        adapter: The adapter.
        folder: The folder that PEFT saved it to; None if it was not kept.

    Raises:
        ConfigError: The files are gone, and the registry knows the target modules only as a group.
    """
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")) if folder else adapter.params
    targets = saved.get("target_modules")
    # PEFT knows one group by itself, and only alone.
    if folder is None and targets != "all-linear" and set(target_groups()) & set(str(targets).split("+")):
        raise ConfigError(
            f"the files of adapter {adapter.adapter_id} were not kept, and only the model says which modules "
            f"{targets!r} names; use --format yaml, whose space takes the group"
        )
    if isinstance(targets, list):
        targets = sorted(targets)
    elif folder is None and isinstance(targets, str) and "+" in targets:
        targets = sorted(targets.split("+"))
    fields = {
        "task_type": "CAUSAL_LM",
        **{name: saved.get(name) for name in ("r", "lora_alpha", "lora_dropout", "use_rslora")},
        "target_modules": targets,
        **{name: saved[name] for name, usual in _PEFT.items() if saved.get(name) not in (usual, None)},
    }
    name, revision = split_identity(adapter.base_identity)
    known = {"MODEL": name, "REVISION": revision, "LEARNING_RATE": adapter.learning_rate, "SEED": adapter.seed}
    return "\n".join(
        [
            f'"""Adapter {adapter.adapter_id} ({adapter.name})."""',
            "",
            "from peft import LoraConfig",
            "",
            *(f"{constant} = {value!r}" for constant, value in known.items() if value is not None),
            "",
            "config = LoraConfig(",
            *(f"    {field}={value!r}," for field, value in fields.items() if value is not None),
            ")",
            "",
        ]
    )


def _space(adapter: Adapter) -> dict[str, Any]:
    values = {name: adapter.params[name] for name in PARAMETERS if adapter.params.get(name) is not None}
    if isinstance(targets := values.get("target_modules"), list):
        values["target_modules"] = "+".join(targets)
    rule = "rslora" if adapter.params.get("use_rslora") else "fixed"
    parameters: dict[str, Any] = {name: {"choice": [value]} for name, value in values.items()}
    if "lora_alpha" in parameters:
        parameters["lora_alpha"] = {"rule": rule, **parameters["lora_alpha"]}
    return load_space({"name": f"adapter-{adapter.adapter_id}", "parameters": parameters}).to_dict()
