from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest


def test_platform_folder_does_not_shadow_the_standard_library(root: Path, run_python: Callable[..., str]) -> None:
    # With an __init__.py there, `import platform` would find our folder in every program started from the root.
    assert not (root / "platform" / "__init__.py").exists()
    assert run_python("-c", "import platform; print(platform.system())").strip() == platform.system()
    assert run_python("-m", "platform").strip() == platform.platform()


@pytest.mark.parametrize("folder", ["platform", "registry", "search_spaces", "dashboard"])
def test_each_source_root_holds_one_typed_package(root: Path, folder: str) -> None:
    packages = [path.parent for path in (root / folder).glob("*/__init__.py")]
    assert [package.name for package in packages] == [
        {
            "platform": "rankloom",
            "registry": "rankloom_registry",
            "search_spaces": "rankloom_spaces",
            "dashboard": "rankloom_dashboard",
        }[folder]
    ]
    assert (packages[0] / "py.typed").is_file()
    assert not list((root / folder).glob("*.py"))


def test_tests_mirror_the_source_roots(root: Path) -> None:
    mirrored = {path.name for path in (root / "tests").iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert mirrored <= {
        "platform",
        "registry",
        "search_spaces",
        "dashboard",
        "house",
        "benchmarks",
        "examples",
        "docs",
        "support",
    }
