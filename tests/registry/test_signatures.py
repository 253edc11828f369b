from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rankloom_registry import (
    Adapter,
    AdapterAdded,
    AdapterDiscarded,
    ArtifactError,
    BaseFingerprint,
    Registry,
    RegistryWriteError,
    SignatureError,
)
from rankloom_registry.signatures import Signatures
from rankloom_registry.signing import Signer, Verifier

Keys = tuple[Path, Path]
Make = Callable[..., Path]


@pytest.fixture
def add(kept: Registry, base: BaseFingerprint) -> Callable[[Path], Adapter]:
    """Keeps and records an adapter under the name of its folder."""

    def added(source: Path) -> Adapter:
        kept.record(
            AdapterAdded(
                adapter_id=f"{source.name}-id",
                name=source.name,
                base_content_root=base.content_root,
                params={},
                metrics={},
                artifact_sha256=kept.artifacts.add(source),
            )
        )
        return kept.adapter(source.name)

    return added


def asking(kept: Registry, public_key: Path) -> Registry:
    """The same registry, opened by somebody who trusts one key."""
    registry = Registry.open(kept.path, verifier=Verifier(public_key))
    registry.artifacts = kept.artifacts
    return registry


def test_only_what_was_signed_is_loaded(
    kept: Registry, add: Callable[[Path], Adapter], adapter_folder: Make, make_keys: Callable[..., Keys], keys: Keys
) -> None:
    signed, unsigned = add(adapter_folder("signed")), add(adapter_folder("unsigned", weight=0.75))
    signature = kept.sign(signed, Signer(keys[0]))
    assert signature == kept.path.with_name("registry.signatures") / f"{signed.artifact_sha256}.sig"
    kept.verify(signed)  # nothing was put beside its files
    trusting = asking(kept, keys[1])
    assert trusting.checkout(signed) == kept.checkout(signed)
    trusting.verify(signed)

    for check in (trusting.checkout, trusting.verify):
        with pytest.raises(SignatureError, match="adapter unsigned-id: .* is not signed"):
            check(unsigned)
    private, public = make_keys()
    for check in (asking(kept, public).checkout, asking(kept, public).verify):
        with pytest.raises(SignatureError, match="adapter signed-id: .* is not what was signed"):
            check(signed)
    shutil.copy(signature, kept.signatures.path(unsigned.artifact_sha256))
    with pytest.raises(SignatureError, match=r"adapter_model\.safetensors"):
        trusting.checkout(unsigned)
    for adapter in (signed, unsigned):
        assert kept.checkout(adapter).is_dir()  # who asks for no signature is given the files

    kept.sign(signed, Signer(private))  # the last one who signs is the one who has signed
    asking(kept, public).checkout(signed)
    with pytest.raises(SignatureError):
        trusting.checkout(signed)


def test_an_adapter_that_borrows_a_tensor_is_signed_whole(
    kept: Registry, add: Callable[[Path], Adapter], adapter_folder: Make, write_safetensors: Make, keys: Keys
) -> None:
    shared = np.random.default_rng(0).standard_normal((2, 250_000)).astype(np.float32)
    adapters = []
    for number, name in enumerate(("lender", "borrower")):
        own = np.full((8, 2), number + 1.0, np.float32)
        tensors = {"q.lora_A.weight": ("F32", shared), "q.lora_B.weight": ("F32", own)}
        folder = adapter_folder(name)
        write_safetensors(folder / "adapter_model.safetensors", tensors)
        adapters.append(add(folder))
    assert kept.artifacts.place.listing("lent")
    for adapter in adapters:
        kept.sign(adapter, Signer(keys[0]))
        asking(kept, keys[1]).verify(adapter)


def test_what_cannot_be_signed(
    kept: Registry, add: Callable[[Path], Adapter], adapter_folder: Make, keys: Keys
) -> None:
    signer, discarded = Signer(keys[0]), add(adapter_folder("discarded"))
    kept.record(AdapterDiscarded(adapter_id="discarded-id", reason=""))
    with pytest.raises(ArtifactError, match="its files were not kept"):
        kept.sign(kept.adapter("discarded"), signer)
    changed = add(adapter_folder("changed", weight=0.75))
    kept.artifacts.place.write({key: b"{}" for key in kept.artifacts.place.listing("sha256") if "config" in key})
    with pytest.raises(ArtifactError, match=r"adapter_config\.json changed"):
        kept.sign(changed, signer)
    assert kept.signatures.files() == {}
    for address in ("", "../up", discarded.artifact_sha256.upper()):
        with pytest.raises(ArtifactError, match="SHA-256"):
            kept.signatures.path(address)


def test_where_no_signature_can_be_kept(
    kept: Registry, add: Callable[[Path], Adapter], adapter_folder: Make, keys: Keys
) -> None:
    adapter = add(adapter_folder())
    kept.signatures.folder.write_text("in the way")
    with pytest.raises(RegistryWriteError, match="signatures"):
        kept.sign(adapter, Signer(keys[0]))


def test_signatures_are_beside_the_file_that_is_open(tmp_path: Path) -> None:
    assert Signatures(tmp_path / "mine.duckdb").folder == tmp_path / "mine.signatures"
