from __future__ import annotations

import json
import os
import shutil
import struct
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rankloom_registry
from rankloom_registry import (
    AdapterAdded,
    ArtifactStore,
    BaseFingerprint,
    BaseSeen,
    Event,
    Registry,
    SearchStarted,
    TrialStarted,
)

ROOT = "c" * 64
ADDRESS = "a" * 64


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def base() -> BaseFingerprint:
    return BaseFingerprint(
        identity="org/tiny@0123",
        structure="5" * 64,
        content_root=ROOT,
        tensors=2,
        parameters=10,
        bytes=20,
        dtype="bfloat16",
        tokenizer_sha256=None,
        chat_template_sha256=None,
        config={"model_type": "llama"},
    )


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry.duckdb", create=True)


@pytest.fixture(scope="session")
def recorded_search(tmp_path_factory: pytest.TempPathFactory, base: BaseFingerprint) -> Path:
    """A registry with one search of four trials, and an adapter of each; the losses are 2.0, 1.5, 1.0 and none."""
    path = tmp_path_factory.mktemp("recorded") / "registry.duckdb"
    events: list[Event] = [
        BaseSeen(base=base),
        SearchStarted(
            search_id="search-1",
            name="first",
            base_content_root=ROOT,
            dataset={"path": "train.jsonl"},
            config={"space": "lora"},
            metric="eval_loss",
            mode="min",
            num_samples=4,
            seed=0,
        ),
    ]
    for number, (r, loss) in enumerate([(8, 2.0), (16, 1.5), (32, 1.0), (64, None)]):
        params = {"r": r, "lora_alpha": 16, "learning_rate": 1e-4, "target_modules": "all-linear", "seed": number}
        events += [
            TrialStarted(trial_id=f"trial-{number}", search_id="search-1", number=number, params=params),
            AdapterAdded(
                adapter_id=f"{number}bcd-adapter",
                name=f"first-{number}",
                trial_id=f"trial-{number}",
                base_content_root=ROOT,
                params=params,
                metrics={"eval_loss": loss},
                artifact_sha256=ADDRESS,
            ),
        ]
    with Registry.open(path, create=True) as registry:
        registry.record(*events)
    return path


@pytest.fixture
def searched(recorded_search: Path, tmp_path: Path) -> Registry:
    """A copy of the recorded search that a test may change."""
    return Registry.open(shutil.copy(recorded_search, tmp_path))


@pytest.fixture(scope="session")
def untouched(recorded_search: Path) -> Registry:
    """The recorded search itself, for tests that cannot change it."""
    return Registry.open(recorded_search)


Tensors = Mapping[str, tuple[str, np.ndarray]]


@pytest.fixture
def write_safetensors() -> Callable[..., Path]:
    """Writes tensors given as name -> (dtype, array whose bytes are the data); the header can be spoiled."""

    def write(path: Path, tensors: Tensors, *, spoil: Callable[[dict[str, Any]], object] | None = None) -> Path:
        header: dict[str, Any] = {}
        data = b""
        for name, (dtype, array) in tensors.items():
            raw = np.ascontiguousarray(array).tobytes()
            header[name] = {
                "dtype": dtype,
                "shape": list(array.shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
        if spoil:
            spoil(header)
        text = json.dumps(header).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    return write


@pytest.fixture
def adapter_folder(tmp_path: Path, write_safetensors: Callable[..., Path]) -> Callable[..., Path]:
    """Makes a PEFT adapter folder; keyword arguments change its configuration."""

    def make(name: str = "adapter", weight: float = 0.5, **config: Any) -> Path:
        folder = tmp_path / name
        array = np.full((2, 4), weight, np.float32)
        write_safetensors(
            folder / "adapter_model.safetensors",
            {
                "base_model.model.q_proj.lora_A.weight": ("F32", array),
                "base_model.model.q_proj.lora_B.weight": ("F32", array.T.copy()),
            },
        )
        defaults = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "auto_mapping": None}
        defaults |= {"megatron_config": None, "megatron_core": "megatron.core"}  # as PEFT writes them
        (folder / "adapter_config.json").write_text(json.dumps(defaults | config))
        return folder

    return make


@pytest.fixture
def child_environment() -> dict[str, str]:
    """For a process that imports the registry as this one does."""
    return os.environ | {"PYTHONPATH": str(Path(rankloom_registry.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(params=["folder", "memory"])
def kept(request: pytest.FixtureRequest, registry: Registry, base: BaseFingerprint) -> Registry:
    """A registry with a base, and its artifacts in a folder or at a URL."""
    if request.param == "memory":
        registry.artifacts = ArtifactStore(f"memory://{uuid.uuid4().hex}")
    registry.record(BaseSeen(base=base))
    return registry
