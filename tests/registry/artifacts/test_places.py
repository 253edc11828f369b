"""What every kind of place does alike: a folder, file://, an object store in memory, and one that speaks S3."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankloom_registry import ArtifactError, ArtifactStore, errors
from rankloom_registry.artifacts.local import LocalPlace
from rankloom_registry.artifacts.place import ARTIFACTS, MANIFEST, folder_key, manifest_key
from rankloom_registry.artifacts.remote import RemotePlace

Make = Callable[..., Path]
FILES = ("adapter_config.json", "adapter_model.safetensors")


def same_files(folder: Path, source: Path) -> bool:
    return all((folder / name).read_bytes() == (source / name).read_bytes() for name in FILES)


def test_what_goes_in_comes_out(any_store: ArtifactStore, adapter_folder: Make) -> None:
    source = adapter_folder()
    (source / "README.md").write_text("# hello\n")
    address = any_store.add(source)
    assert any_store.add(source) == address
    any_store.verify(address)
    folder = any_store.checkout(address)
    assert same_files(folder, source) and (folder / "README.md").read_text() == "# hello\n"
    assert folder == any_store.path(address) == any_store.checkout(address)
    assert any_store.place.leftovers() == any_store.cache.leftovers() == {}
    assert any_store.remove(address) and any_store.remove(address)
    assert any_store.place.listing(ARTIFACTS) == {}
    with pytest.raises(ArtifactError, match="gone"):
        any_store.verify(address)


def test_a_changed_file_is_found_and_healed(any_store: ArtifactStore, adapter_folder: Make) -> None:
    source = adapter_folder()
    address = any_store.add(source)
    key = f"{folder_key(address)}/adapter_model.safetensors"
    content = bytearray(b"".join(any_store.place.blocks(key)))
    content[-1] ^= 1
    any_store.place.write({key: bytes(content)})
    for read in (any_store.verify, any_store.checkout):
        with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors changed"):
            read(address)
    assert any_store.add(source) == address
    assert same_files(any_store.checkout(address), source)

    any_store.place.write({f"{folder_key(address)}/extra.py": b""})
    any_store.place.delete([f"{folder_key(address)}/adapter_config.json"])
    with pytest.raises(ArtifactError, match=r"adapter_config\.json is missing, extra\.py was added"):
        any_store.verify(address)
    assert any_store.add(source) == address
    any_store.verify(address)

    any_store.place.write({manifest_key(address): b"{}"})
    with pytest.raises(ArtifactError, match=r"manifest\.json .*changed"):
        any_store.verify(address)


def test_part_of_a_file_can_be_read(any_store: ArtifactStore) -> None:
    key = "tensors/ab/entry"
    any_store.place.write({key: b"0123456789", "tensors/ab/other": b""})
    assert b"".join(any_store.place.blocks(key)) == b"0123456789"
    assert b"".join(any_store.place.blocks(key, 3, 4)) == b"3456"
    assert any_store.place.read([key, "tensors/ab/other", "tensors/ab/none"]) == {
        key: b"0123456789",
        "tensors/ab/other": b"",
    }
    assert {name: stored.size for name, stored in any_store.place.listing("tensors").items()} == {
        key: 10,
        "tensors/ab/other": 0,
    }
    any_store.place.delete([key, key])
    assert any_store.place.read([key]) == {} == any_store.place.listing("nothing")
    with pytest.raises(ArtifactError):
        list(any_store.place.blocks(key))


def test_an_artifact_that_is_wanted_just_now_stays(any_store: ArtifactStore, adapter_folder: Make) -> None:
    source = adapter_folder()
    address = any_store.add(source)
    answers = iter([False, True])  # somebody asks for it between the question and the removal
    assert not any_store.place.withdraw(address, spare=lambda wanted: next(answers))
    any_store.verify(address)
    assert not any_store.place.withdraw(address, spare=lambda wanted: True)
    any_store.verify(address)
    assert any_store.place.leftovers() == {}

    (wanted,) = [
        stored.modified for key, stored in any_store.place.listing(ARTIFACTS).items() if key.endswith(MANIFEST)
    ]
    assert any_store.place.touch(address)
    (later,) = [stored.modified for key, stored in any_store.place.listing(ARTIFACTS).items() if key.endswith(MANIFEST)]
    assert later >= wanted
    assert not any_store.remove(address, unless_wanted_since=wanted - 60)
    assert any_store.remove(address, unless_wanted_since=later)
    assert not any_store.place.touch(address)


def test_a_checkout_is_verified_each_time(adapter_folder: Make) -> None:
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}")
    source = adapter_folder()
    address = store.add(source)
    folder = store.checkout(address)
    (folder / "adapter_config.json").chmod(0o644)
    (folder / "adapter_config.json").write_text("{}")
    assert same_files(store.checkout(address), source)
    before = (folder / "adapter_config.json").stat().st_ino
    store.checkout(address)
    assert (folder / "adapter_config.json").stat().st_ino == before  # it was whole, and stays


@pytest.mark.parametrize("uploads", range(3))
def test_an_upload_that_is_cut_short_is_no_artifact(
    adapter_folder: Make, uploads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}")
    source = adapter_folder()
    assert isinstance(store.place, RemotePlace)
    filesystem = store.place._fs
    upload, left = filesystem.put_file, iter(range(uploads))

    def until_the_line_breaks(*arguments: Any) -> None:
        if next(left, None) is None:
            raise ConnectionResetError("the line is cut")
        upload(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "put_file", until_the_line_breaks)
        with pytest.raises(errors.ArtifactUnreachableError, match="the line is cut"):
            store.add(source)
    assert len(store.place.listing(ARTIFACTS)) == uploads and store.cache.leftovers() == {}
    assert not any(key.endswith(MANIFEST) for key in store.place.listing(ARTIFACTS))
    address = store.add(source)
    assert same_files(store.checkout(address), source)


def test_a_place_that_cannot_be_used_says_what_to_do(tmp_path: Path, adapter_folder: Make) -> None:
    with pytest.raises(errors.ArtifactUnreachableError, match="nowhere://x"):
        ArtifactStore("nowhere://x").verify("a" * 64)
    with pytest.raises(ArtifactError, match="no password"):
        ArtifactStore("sftp://somebody:secret@host/folder")
    with pytest.raises(ArtifactError, match="absolute"):
        ArtifactStore("file://relative/path")
    assert ArtifactStore("file:///srv/a%20b").root == Path("/srv/a b")
    (tmp_path / "occupied").write_text("")
    with pytest.raises(errors.RegistryWriteError, match="occupied"):
        ArtifactStore(tmp_path / "occupied").add(adapter_folder())


def test_a_bucket_that_is_not_there_is_unreachable(s3_bucket: str, adapter_folder: Make) -> None:
    store = ArtifactStore("s3://no-such-bucket/prefix")
    with pytest.raises(errors.RegistryError, match="no-such-bucket"):
        store.add(adapter_folder())
    assert store.cache.leftovers() == {}


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(errors.MissingPackageError, match=r"rankloom\[gs\]"):
        ArtifactStore("gs://bucket/prefix").verify("a" * 64)


def test_what_was_left_behind_is_listed(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path / "store")
    staging = place.staging()
    (staging / "half").write_bytes(b"12345")
    (tmp_path / "store" / "removed-x" / ("a" * 64)).mkdir(parents=True)
    found = place.leftovers()
    assert {path.name[:8]: stored.size for path, stored in found.items()} == {"incoming": 5, "removed-": 0}
    assert found[staging].modified >= (staging / "half").stat().st_mtime
