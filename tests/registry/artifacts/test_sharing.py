from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rankloom_registry import ArtifactError, ArtifactStore
from rankloom_registry.artifacts.place import LOANS, TENSORS, folder_key
from rankloom_registry.artifacts.sharing import PARTS, REST

Make = Callable[..., Path]
WEIGHTS = "adapter_model.safetensors"
A = "a" * 64


def stored_bytes(store: ArtifactStore) -> int:
    return sum(stored.size for prefix in ("sha256", TENSORS, LOANS) for stored in store.place.listing(prefix).values())


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


def test_a_large_tensor_is_kept_once(any_store: ArtifactStore, two_tensors: Make) -> None:
    first, second, third = two_tensors("1", 1, 2), two_tensors("2", 1, 3), two_tensors("3", 1, 3, 0.5)
    size = len(weights(first))
    addresses = [any_store.add(folder) for folder in (first, second, third)]
    assert stored_bytes(any_store) < 1.7 * size  # 3 pairs of matrices, of which 3 are different
    for folder, address in zip((first, second, third), addresses, strict=True):
        any_store.verify(address)
        assert weights(any_store.checkout(address)) == weights(folder)
    assert any_store.checkout(addresses[0]) == any_store.path(addresses[0])
    assert [any_store.add(folder) for folder in (first, second, third)] == addresses
    assert stored_bytes(any_store) < 1.7 * size
    assert any_store.place.leftovers() == any_store.cache.leftovers() == {}


def test_an_adapter_that_shares_nothing_is_the_folder_that_peft_wrote(
    any_store: ArtifactStore, two_tensors: Make
) -> None:
    for name, a, b in (("1", 1, 2), ("2", 3, 4)):
        address = any_store.add(two_tensors(name, a, b))
        names = {Path(key).name for key in any_store.place.listing(folder_key(address))}
        assert names == {"adapter_config.json", WEIGHTS, "manifest.json"}


def test_what_lends_stays_until_nothing_borrows(any_store: ArtifactStore, two_tensors: Make) -> None:
    lender, borrower = any_store.add(two_tensors("1", 1, 2)), any_store.add(two_tensors("2", 1, 3))
    assert not any_store.remove(lender)
    any_store.verify(lender)
    any_store.verify(borrower)
    assert any_store.remove(borrower)
    assert any_store.place.listing(LOANS) == {}
    assert any_store.remove(lender)


def test_a_lender_that_changed_is_found_by_whoever_borrows(any_store: ArtifactStore, two_tensors: Make) -> None:
    first, second = two_tensors("1", 1, 2), two_tensors("2", 1, 3)
    lender, borrower = any_store.add(first), any_store.add(second)
    key = f"{folder_key(lender)}/{WEIGHTS}"
    content = bytearray(weights(first))
    content[1000] ^= 1  # in the tensor that is lent
    any_store.place.write({key: bytes(content)})
    for address in (lender, borrower):
        with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors changed"):
            any_store.verify(address)
    third = any_store.add(two_tensors("3", 1, 4))  # what does not verify is not borrowed
    any_store.verify(third)
    any_store.add(first)  # heals the lender, and with it the borrower
    for address in (lender, borrower, third):
        any_store.verify(address)


def test_an_entry_that_leads_nowhere_costs_nothing(any_store: ArtifactStore, two_tensors: Make) -> None:
    first = any_store.add(two_tensors("1", 1, 2))
    assert any_store.remove(first)
    entries = any_store.place.listing(TENSORS)
    assert len(entries) == 2
    second = any_store.add(two_tensors("2", 1, 3))
    any_store.verify(second)
    assert any_store.place.listing(LOANS) == {}
    any_store.place.write(dict.fromkeys(entries, b"torn {"))
    any_store.verify(any_store.add(two_tensors("3", 1, 4)))
    for entry in ({"artifact": "../../x", "offset": 0}, {"artifact": A, "offset": -1}, {"artifact": A}, [], 7):
        any_store.place.write(dict.fromkeys(entries, json.dumps(entry).encode()))
        any_store.verify(any_store.add(two_tensors("4", 2, 1)))


@pytest.mark.parametrize(
    "spoil",
    [
        {"artifact": "../../../etc"},
        {"offset": -1},
        {"size": 0},
        {"at": -5},
        {"more": 1},
        {"at": 10**9},
        {"offset": "0"},
    ],
)
def test_a_list_of_parts_that_was_changed_is_refused(
    tmp_path: Path, two_tensors: Make, spoil: dict[str, object]
) -> None:
    store = ArtifactStore(tmp_path / "store")
    store.add(two_tensors("1", 1, 2))
    address = store.add(two_tensors("2", 1, 3))
    path = store.path(address) / PARTS
    content = json.loads(path.read_text())
    content["pieces"][0] |= spoil
    path.chmod(0o644)
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=PARTS):
        store.verify(address)
    store.remove(address)
    assert not store.path(address).exists()


def test_a_rest_that_is_gone_is_named(tmp_path: Path, two_tensors: Make) -> None:
    store = ArtifactStore(tmp_path / "store")
    store.add(two_tensors("1", 1, 2))
    source = two_tensors("2", 1, 3)
    address = store.add(source)
    (store.path(address) / REST).unlink()
    with pytest.raises(ArtifactError, match=rf"{REST} is missing"):
        store.verify(address)
    assert store.add(source) == address
    assert weights(store.checkout(address)) == weights(source)


def test_a_borrower_can_lend_what_is_its_own(tmp_path: Path, two_tensors: Make) -> None:
    store = ArtifactStore(tmp_path / "store")
    sources = [two_tensors("1", 1, 2), two_tensors("2", 1, 3), two_tensors("3", 3, 1), two_tensors("4", 3, 2)]
    addresses = [store.add(source) for source in sources]
    for source, address in zip(sources, addresses, strict=True):
        assert weights(store.checkout(address)) == weights(source)
    # The second is damaged and comes again: it has lent its own tensor, so it is kept whole now.
    rest = store.path(addresses[1]) / REST
    rest.chmod(0o644)
    os.truncate(rest, rest.stat().st_size - 1)
    store.add(sources[1])
    assert (store.path(addresses[1]) / WEIGHTS).exists()
    for source, address in zip(sources, addresses, strict=True):
        assert weights(store.checkout(address)) == weights(source)
