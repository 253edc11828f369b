"""What only the tests of the platform need of the trained world in `tests/conftest.py`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rankloom_registry import BaseFingerprint


@pytest.fixture(scope="session")
def fingerprint() -> BaseFingerprint:
    """That of a base which is nowhere: for what only names one."""
    return BaseFingerprint(
        identity="org/tiny@0123",
        structure="5" * 64,
        content_root="c" * 64,
        tensors=2,
        parameters=10,
        bytes=20,
        dtype="bfloat16",
        tokenizer_sha256=None,
        chat_template_sha256=None,
        config={},
    )


@pytest.fixture
def sharded_base(trained: Any, tmp_path: Path) -> Path:
    """The base of the trained search with the same weights in three files, which a test may change."""
    import json

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(trained.base, tmp_path / "sharded")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        shard = {name: weights[name] for name in sorted(weights)[number::3]}
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder
