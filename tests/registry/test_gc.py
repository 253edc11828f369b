from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from rankloom_registry import (
    AdapterAdded,
    AdapterDiscarded,
    AliasMoved,
    ArtifactStore,
    BaseFingerprint,
    BaseSeen,
    Evaluated,
    Registry,
)
from rankloom_registry.artifacts.place import ARTIFACTS, LOANS, TENSORS
from rankloom_registry.files import reports_folder
from rankloom_registry.gc import gc
from rankloom_registry.signing import Signer

Make = Callable[..., Path]
AT_ONCE = timedelta(0)


@pytest.fixture
def folder(tmp_path: Path, adapter_folder: Make, write_safetensors: Make) -> Make:
    def make(name: str, seed: int) -> Path:
        """An adapter of 2 MB, whose large tensor is made from the seed."""
        path = adapter_folder(name)
        matrix = np.random.default_rng(seed).standard_normal((2, 250_000)).astype(np.float32)
        own = np.full((8, 2), float(sum(name.encode())), np.float32)
        write_safetensors(
            path / "adapter_model.safetensors", {"q.lora_A.weight": ("F32", matrix), "q.lora_B.weight": ("F32", own)}
        )
        return path

    return make


def added(registry: Registry, source: Path, base: BaseFingerprint) -> str:
    """Keep and record an adapter under the name of its folder."""
    address = registry.artifacts.add(source)
    registry.record(
        AdapterAdded(
            adapter_id=f"{source.name}-id",
            name=source.name,
            base_content_root=base.content_root,
            params={},
            metrics={},
            artifact_sha256=address,
        )
    )
    return address


def addresses(store: ArtifactStore) -> set[str]:
    return {Path(key).parent.name for key in store.place.listing(ARTIFACTS)}


def discard(registry: Registry, *names: str) -> None:
    registry.record(*(AdapterDiscarded(adapter_id=f"{name}-id", reason="no longer needed") for name in names))


def test_what_nothing_refers_to_goes(kept: Registry, base: BaseFingerprint, folder: Make) -> None:
    used, discarded = added(kept, folder("used", 1), base), added(kept, folder("discarded", 2), base)
    aliased = added(kept, folder("aliased", 3), base)
    never_recorded = kept.artifacts.add(folder("never-recorded", 4))
    kept.record(AliasMoved(name="aliased", alias="prod", adapter_id="aliased-id"))
    discard(kept, "discarded", "aliased")

    rehearsal = gc(kept, grace=AT_ONCE, dry_run=True)
    assert set(rehearsal.removed) == {discarded, never_recorded} and rehearsal.bytes > 4_000_000
    assert addresses(kept.artifacts) == {used, aliased, discarded, never_recorded}
    done = gc(kept, grace=AT_ONCE)
    assert (done.removed, done.bytes, done.kept, done.dry_run) == (rehearsal.removed, rehearsal.bytes, 2, False)
    assert addresses(kept.artifacts) == {used, aliased}
    for address in (used, aliased):
        kept.artifacts.verify(address)
    assert len(kept.artifacts.place.listing(TENSORS)) == 2 and done.entries == 2
    again = gc(kept, grace=AT_ONCE)
    assert (again.removed, again.leftovers, again.entries, again.bytes) == ((), (), 0, 0)


def test_nothing_young_goes(kept: Registry, folder: Make) -> None:
    orphan = kept.artifacts.add(folder("orphan", 1))
    staging = kept.artifacts.place.staging()
    report = gc(kept)
    assert (report.removed, report.leftovers, report.entries, report.young) == ((), (), 0, 1)
    assert addresses(kept.artifacts) == {orphan} and staging.exists()


def test_what_lends_to_a_live_artifact_stays(kept: Registry, base: BaseFingerprint, folder: Make) -> None:
    lender, borrower = added(kept, folder("lender", 1), base), added(kept, folder("borrower", 1), base)
    discard(kept, "lender")
    assert gc(kept, grace=AT_ONCE).removed == ()
    kept.artifacts.verify(borrower)
    assert kept.artifacts.checkout(borrower).is_dir()
    discard(kept, "borrower")
    assert set(gc(kept, grace=AT_ONCE).removed) == {lender, borrower}  # the one before the other
    for prefix in (ARTIFACTS, LOANS, TENSORS):
        assert kept.artifacts.place.listing(prefix) == {}


def test_a_loan_that_came_to_nothing_is_forgotten(kept: Registry, base: BaseFingerprint, folder: Make) -> None:
    lender = added(kept, folder("lender", 1), base)
    kept.artifacts.place.write({f"{LOANS}/{lender}/{'b' * 64}": b""})
    discard(kept, "lender")
    assert gc(kept).entries == 0  # an adapter that is being added has it
    assert not kept.artifacts.remove(lender)
    report = gc(kept, grace=AT_ONCE)
    assert (report.removed, report.entries) == ((lender,), 2)
    assert addresses(kept.artifacts) == set()


def test_what_a_crash_left_behind_goes_when_it_is_old(registry: Registry, base: BaseFingerprint, folder: Make) -> None:
    store = registry.artifacts
    registry.record(BaseSeen(base=base))
    used, orphan = added(registry, folder("used", 1), base), store.add(folder("orphan", 2))
    half = store.place.staging()
    (half / "adapter_model.safetensors").write_bytes(b"12345")
    removed = Path(store.root) / "removed-x"
    (removed / orphan).mkdir(parents=True)
    torn = Path(store.root) / TENSORS / "ab" / ".torn.1.tmp"
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_bytes(b"{")
    assert gc(registry).leftovers == ()
    two_days_ago = time.time() - 2 * 86_400
    for path in [*Path(store.root).rglob("*")]:
        os.utime(path, (two_days_ago, two_days_ago))
    fresh = store.place.staging()
    report = gc(registry)
    assert report.removed == (orphan,) and set(report.leftovers) == {str(half), str(removed)}
    assert fresh.exists() and not half.exists() and not removed.exists() and not torn.exists()
    assert addresses(store) == {used}


def test_an_old_artifact_that_is_added_again_is_young(registry: Registry, folder: Make) -> None:
    store, source = registry.artifacts, folder("again", 1)
    address = store.add(source)
    two_days_ago = time.time() - 2 * 86_400
    for path in store.path(address).iterdir():
        os.utime(path, (two_days_ago, two_days_ago))
    assert gc(registry, dry_run=True).removed == (address,)
    store.add(source)
    assert gc(registry).removed == ()


def test_checkouts_that_nobody_uses_go(registry: Registry, base: BaseFingerprint, folder: Make) -> None:
    registry.artifacts = ArtifactStore(f"memory://{uuid.uuid4().hex}")
    registry.record(BaseSeen(base=base))
    address = added(registry, folder("used", 1), base)
    checkout = registry.artifacts.checkout(address)
    assert gc(registry).leftovers == ()
    two_days_ago = time.time() - 2 * 86_400
    for path in checkout.iterdir():
        os.utime(path, (two_days_ago, two_days_ago))
    assert gc(registry, dry_run=True).leftovers == (str(checkout),)
    registry.artifacts.checkout(address)
    assert gc(registry).leftovers == ()  # it was used meanwhile
    report = gc(registry, grace=AT_ONCE)
    assert report.leftovers == (str(checkout),) and not checkout.exists()
    assert registry.artifacts.checkout(address) == checkout and checkout.is_dir()


def test_a_signature_goes_with_its_artifact(
    kept: Registry, base: BaseFingerprint, folder: Make, keys: tuple[Path, Path]
) -> None:
    signer = Signer(keys[0])
    added(kept, folder("used", 1), base)
    added(kept, folder("discarded", 2), base)
    used, discarded = (kept.sign(kept.adapter(name), signer) for name in ("used", "discarded"))
    stray = kept.signatures.path("b" * 64)
    torn = stray.with_name(f".{stray.name}.1.tmp")
    for path in (stray, torn):
        path.write_text("{}")
    discard(kept, "discarded")
    assert gc(kept).leftovers == ()  # a day has not passed

    rehearsal = gc(kept, grace=AT_ONCE, dry_run=True)
    assert all(path.exists() for path in (used, discarded, stray, torn))
    assert {str(stray), str(torn)} <= set(rehearsal.leftovers) and str(discarded) not in rehearsal.leftovers
    done = gc(kept, grace=AT_ONCE)
    assert (done.leftovers, done.bytes) == (rehearsal.leftovers, rehearsal.bytes)
    assert set(kept.signatures.files()) == {used}


def test_a_signature_stays_while_its_adapter_is_recorded(
    registry: Registry, base: BaseFingerprint, folder: Make, keys: tuple[Path, Path]
) -> None:
    registry.record(BaseSeen(base=base))
    added(registry, folder("used", 1), base)
    signature = registry.sign(registry.adapter("used"), Signer(keys[0]))
    Path(registry.artifacts.root).rename(registry.path.parent / "not-mounted")
    assert gc(registry, grace=AT_ONCE).leftovers == () and signature.exists()


def test_the_rows_of_an_evaluation_stay_while_it_is_recorded(registry: Registry, base: BaseFingerprint) -> None:
    registry.record(
        BaseSeen(base=base),
        Evaluated(evaluation_id="0a1b-0", adapter_id=None, base_content_root=base.content_root, dataset={}, metrics={}),
    )
    folder = reports_folder(registry.path)
    folder.mkdir()
    used, stray = folder / "0a1b.jsonl", folder / "ffff.jsonl"
    for path in (used, stray):
        path.write_text("{}")
    assert gc(registry).leftovers == ()
    assert gc(registry, grace=AT_ONCE).leftovers == (str(stray),)
    assert list(folder.iterdir()) == [used]
