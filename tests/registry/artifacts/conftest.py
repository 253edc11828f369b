from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from rankloom_registry import ArtifactStore

Q, K = "base_model.model.q_proj", "base_model.model.k_proj"


@pytest.fixture
def two_tensors(tmp_path: Path, write_safetensors: Callable[..., Path]) -> Callable[..., Path]:
    """Makes an adapter of two pairs of large matrices, each filled from a seed: the same seed is the same tensor."""

    def make(name: str, a: int, b: int, small: float = 1.0, **config: Any) -> Path:
        folder = tmp_path / name

        def matrix(seed: int) -> np.ndarray:
            return np.random.default_rng(seed).standard_normal((2, 150_000)).astype(np.float32)

        write_safetensors(
            folder / "adapter_model.safetensors",
            {
                f"{Q}.lora_A.weight": ("F32", matrix(a)),
                f"{Q}.lora_B.weight": ("F32", np.full((8, 2), small, np.float32)),
                f"{K}.lora_A.weight": ("F32", matrix(b)),
                f"{K}.lora_B.weight": ("F32", np.full((8, 2), small, np.float32)),
            },
        )
        defaults = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
        (folder / "adapter_config.json").write_text(json.dumps(defaults | config))
        return folder

    return make


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """The URL of a bucket on a server of this machine that speaks S3's protocol."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("rankloom")
        yield "s3://rankloom"
    server.stop()


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An empty store of each kind."""
    match request.param:
        case "folder":
            return ArtifactStore(tmp_path / "store")
        case "file":
            return ArtifactStore(f"file://{tmp_path}/of%20files")
        case "memory":
            return ArtifactStore(f"memory://{uuid.uuid4().hex}")
    return ArtifactStore(f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}/adapters")
