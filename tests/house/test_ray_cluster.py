"""The cluster file, checked as far as it can be without a cloud: by Ray's schema, and for what Ray lets through."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

Config = dict[str, Any]


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "ray_cluster.yaml").read_text()


@pytest.fixture(scope="module")
def cloud(text: str) -> Config:
    config: Config = yaml.safe_load(text)
    return config


@pytest.fixture(scope="module")
def on_premise(text: str, cloud: Config) -> Config:
    """The file as its opening comment tells a reader to change it."""
    recipe = re.search(r"^# On your own machines.*?: remove (?P<removed>.*?), and put", text, re.MULTILINE | re.DOTALL)
    assert recipe is not None
    removed = re.findall(r"`(\w+)`", recipe["removed"])
    put = yaml.safe_load("\n".join(re.findall(r"^#   ((?:provider|auth): .*)$", text, re.MULTILINE)))
    assert removed and put.keys() == {"provider", "auth"}
    return {key: value for key, value in cloud.items() if key not in removed} | put


@pytest.mark.parametrize("variant", ["cloud", "on_premise"])
def test_ray_accepts_the_file(variant: str, request: pytest.FixtureRequest) -> None:
    ray_autoscaler = pytest.importorskip("ray.autoscaler")
    from ray.autoscaler._private.providers import _NODE_PROVIDERS
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: Config = request.getfixturevalue(variant)
    schema = json.loads((Path(ray_autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(deepcopy(config)))
    # Ray's validation knows no provider by name.
    assert config["provider"]["type"] in _NODE_PROVIDERS


def test_workers_fit_their_limits(cloud: Config) -> None:
    workers = {name: node for name, node in cloud["available_node_types"].items() if name != cloud["head_node_type"]}
    # Ray's validation lets a minimum above its maximum through.
    assert all(0 <= node["min_workers"] <= node["max_workers"] <= cloud["max_workers"] for node in workers.values())


def test_only_workers_have_gpus(cloud: Config) -> None:
    gpus = {name: node["resources"].get("GPU", 0) for name, node in cloud["available_node_types"].items()}
    assert gpus.pop(cloud["head_node_type"]) == 0
    assert min(gpus.values()) >= 1


def test_images_run_the_pinned_ray(root: Path, cloud: Config) -> None:
    ray = re.search(r"^ray==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert ray is not None
    images = (cloud["docker"]["head_image"], cloud["docker"]["worker_image"])
    assert images == (f"rayproject/ray:{ray[1]}-py311-cpu", f"rayproject/ray:{ray[1]}-py311-gpu")


def test_memory_monitor_is_off_and_the_token_is_asked_for(cloud: Config) -> None:
    options = cloud["docker"]["run_options"]
    assert "--env RAY_memory_monitor_refresh_ms=0" in options
    assert "--env RAY_AUTH_MODE=token" in options


def test_no_secret_of_hugging_face_is_mounted(cloud: Config) -> None:
    assert "~/.cache/huggingface" not in cloud["file_mounts"].values()


def test_every_placeholder_is_explained_at_the_top(text: str, cloud: Config) -> None:
    used = set(re.findall(r"YOUR_[A-Z_0-9]+", yaml.safe_dump(cloud)))
    explained = set(re.findall(r"^#   (YOUR_[A-Z_0-9]+) ", text, re.MULTILINE))
    assert used == explained == {"YOUR_GPU_AMI_ID", "YOUR_EFS_ID"}
