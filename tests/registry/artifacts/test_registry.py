"""A registry whose adapters' files lie at a URL."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from rankloom_registry import AdapterAdded, ArtifactError, BaseFingerprint, BaseSeen, Registry, RegistryFormatError
from rankloom_registry.gc import gc

Make = Callable[..., Path]


def test_the_url_is_recorded_when_the_registry_is_made(
    tmp_path: Path, base: BaseFingerprint, adapter_folder: Make, s3_bucket: str
) -> None:
    url = f"{s3_bucket}/{uuid.uuid4().hex}"
    made = Registry.open(tmp_path / "r.duckdb", create=True, artifacts=url)
    source = adapter_folder()
    made.record(
        BaseSeen(base=base),
        AdapterAdded(
            adapter_id="abcd",
            name="first",
            base_content_root=base.content_root,
            params={},
            metrics={},
            artifact_sha256=made.artifacts.add(source),
        ),
    )
    assert not (tmp_path / "r.artifacts").exists()

    registry = Registry.open(tmp_path / "r.duckdb")
    adapter = registry.adapter("abcd")
    assert (registry.artifacts.root, adapter.status, adapter.artifact_path) == (url, "available", None)
    registry.verify(adapter)
    weights = registry.checkout(adapter) / "adapter_model.safetensors"
    assert weights.read_bytes() == (source / "adapter_model.safetensors").read_bytes()
    assert gc(registry).kept == 1
    (tmp_path / "r.duckdb").unlink()
    rebuilt = tmp_path / "r.duckdb"
    Registry.rebuild(rebuilt)
    assert Registry.open(rebuilt).artifacts.root == url


def test_the_place_is_chosen_once(tmp_path: Path) -> None:
    path = tmp_path / "r.duckdb"
    Registry.open(path, create=True)
    with pytest.raises(RegistryFormatError, match=r"r\.artifacts, which was chosen"):
        Registry.open(path, create=True, artifacts="memory://other")
    with pytest.raises(RegistryFormatError, match="a URL"):
        Registry.open(tmp_path / "x.duckdb", create=True, artifacts="../elsewhere")
    with pytest.raises(ArtifactError, match="password"):
        Registry.open(tmp_path / "x.duckdb", create=True, artifacts="sftp://somebody:secret@host/x")
    assert not (tmp_path / "x.duckdb").exists()
    remote = tmp_path / "remote.duckdb"
    Registry.open(remote, create=True, artifacts="memory://place")
    assert Registry.open(remote, artifacts="memory://place").artifacts.root == "memory://place"
