"""A machine that serves adapters has neither torch nor Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDS = ("duckdb", "blake3", "numpy", "sqlglot", "fsspec")  # as docs/registry.md lists them
SCRIPT = """
import importlib.util, sys
from rankloom_registry import AdapterAdded, BaseSeen, Registry, fingerprint_base
absent = ("torch", "ray", "transformers", "peft", "pandas", "pyarrow", "pydantic", "yaml")
assert not [name for name in absent if importlib.util.find_spec(name)]
model, adapter, path = sys.argv[1:]
with Registry.open(path, create=True) as registry:
    base = fingerprint_base(model, identity="tiny")
    address = registry.artifacts.add(adapter)
    known = {"base_content_root": base.content_root, "metrics": {"eval_loss": 1.5}, "artifact_sha256": address}
    registry.record(BaseSeen(base=base), AdapterAdded(adapter_id="one", name="first", params={"r": 2}, **known))
with Registry.open(path) as registry:
    (found,) = registry.adapters(where="r <= 16 and eval_loss < 2", order_by="eval_loss", limit=20)
    registry.verify(found)
    assert registry.sql("select adapter_id, base_identity from adapters") == [
        {"adapter_id": "one", "base_identity": "tiny"}
    ]
    print(found.artifact_path)
"""


@pytest.mark.slow
def test_the_registry_needs_five_packages(
    tmp_path: Path, write_safetensors: Callable[..., Path], adapter_folder: Callable[..., Path]
) -> None:
    import numpy as np

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=200)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*install, *NEEDS], check=True, env=environment, timeout=500)
    subprocess.run([*install, "--no-deps", str(ROOT)], check=True, env=environment, timeout=500)
    model = tmp_path / "model"
    write_safetensors(model / "model.safetensors", {"layer.weight": ("F32", np.ones((2, 2), np.float32))})
    (model / "config.json").write_text('{"model_type": "llama"}')
    command = [python, "-c", SCRIPT, str(model), str(adapter_folder()), str(tmp_path / "registry.duckdb")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "adapter_model.safetensors").is_file()
