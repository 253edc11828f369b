from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

TARGETS = ["help", "quickstart", "test", "test-all", "test-gpu", "lint", "format", "wheel", "clean"]


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A make that runs these tests would pass its own flags and settings on.
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON"}
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(["make", *arguments], cwd=root, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("target", TARGETS)
def test_target_exists(root: Path, target: str) -> None:
    done = make(root, "--dry-run", target)
    assert done.returncode == 0, done.stderr


def test_help_names_every_target(root: Path) -> None:
    assert re.findall(r"^  make ([a-z-]+) ", make(root, "help").stdout, re.MULTILINE) == TARGETS


def test_an_unchanged_tree_installs_once(root: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    assert "pip" in make(tmp_path, "--dry-run", "test").stdout
    (tmp_path / ".venv").mkdir()
    for stamp in (".created", ".installed", ".installed-dev"):
        (tmp_path / ".venv" / stamp).touch()
    assert " install " not in make(tmp_path, "--dry-run", "test", "quickstart").stdout
    os.utime(tmp_path / "constraints.txt", (2**31, 2**31))
    assert " install " in make(tmp_path, "--dry-run", "test").stdout


def test_an_old_python_is_refused_with_one_message(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\necho Python 3.9.2\nexit 1\n")
    old.chmod(0o755)
    done = make(tmp_path, f"PYTHON={old}", "test")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert not (tmp_path / ".venv").exists()
