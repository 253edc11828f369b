"""Removes the files that nothing refers to any more."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from rankloom_registry.artifacts.local import LocalPlace
from rankloom_registry.artifacts.place import ARTIFACTS, LOANS, TENSORS, Place, Stored
from rankloom_registry.artifacts.sharing import Loan, lender_of, loan
from rankloom_registry.artifacts.store import ArtifactStore
from rankloom_registry.files import reports_folder
from rankloom_registry.names import is_sha256
from rankloom_registry.registry import Registry

GRACE = timedelta(hours=24)
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbageReport:
    """What was removed, or would have been.

    Attributes:
        removed: Addresses of artifacts that nothing referred to.
        leftovers: Folders of work that did not end, checkouts that nobody used lately, signatures of no artifact, and
            rows of no evaluation.
        entries: Number of entries about shared tensors that led to nothing.
        bytes: Size of all of it, in bytes.
        kept: Number of artifacts that something refers to.
        young: Number of artifacts that nothing refers to, but that are younger than the grace period.
        dry_run: Whether nothing was removed.
    """

    removed: tuple[str, ...]
    leftovers: tuple[str, ...]
    entries: int
    bytes: int
    kept: int
    young: int
    dry_run: bool


def gc(registry: Registry, *, grace: timedelta = GRACE, dry_run: bool = False) -> GarbageReport:
    """Remove the files that no available adapter and no alias refers to, itself or through a tensor that it borrows.

    A signature goes with the artifact that it is of.

    Args:
        registry: The registry, the only one that keeps its artifacts there.
        grace: What was written or used since is left alone: a search adds an adapter's files before it records them.
            With less than the default, no search or import may be running.
        dry_run: Say what would be removed, and remove nothing.

    Returns:
        What was removed, or would be.

    Raises:
        RegistryBusyError: If another program kept the registry for too long.
        RegistryWriteError: If something cannot be removed.
        ArtifactUnreachableError: If the artifacts are at a URL that cannot be reached.
    """
    store = registry.artifacts
    before = time.time() - grace.total_seconds()
    # What there is comes before what is recorded: an adapter that is added meanwhile is then in the second only.
    artifacts = _by_address(store.place.listing(ARTIFACTS))
    signatures = registry.signatures.files()
    folder = reports_folder(registry.path)
    reports = {folder / name: stored for name, stored in LocalPlace(folder).listing("").items()}
    loans = {loan(key): (key, stored) for key, stored in store.place.listing(LOANS).items()}
    used = _in_use(registry)
    young = {address for address, stored in artifacts.items() if stored.modified > before}
    # A loan without a borrower is one of an adapter that is being added, or was never added.
    open_loans = {pair: at for pair, at in loans.items() if pair.borrower not in artifacts}
    lending = {lender for (lender, _), (_, stored) in open_loans.items() if stored.modified > before}
    live = _with_lenders(used | young | lending, loans)
    entries = _old(dict(open_loans.values()) | _dangling(store.place, artifacts.keys() & live), before)
    folders = _old(store.place.leftovers() | store.cache.leftovers(), before)
    checkouts = _old(_by_address(store.cache.listing(ARTIFACTS)), before)
    known = artifacts.keys() | used
    strays = _old({path: stored for path, stored in signatures.items() if path.stem not in known}, before)
    runs = _runs(registry)
    strays |= _old({path: stored for path, stored in reports.items() if path.stem not in runs}, before)
    removed = artifacts.keys() - live
    if not dry_run:
        store.place.delete(entries)
        removed = _remove(store, removed, before)
        for address in checkouts:
            store.cache.withdraw(address, spare=lambda wanted: wanted > before)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)  # whoever works there may end at this moment
    signed = {path: stored for path, stored in signatures.items() if path.stem in removed}
    if not dry_run:
        for path in (*signed, *strays):
            path.unlink(missing_ok=True)
    gone = [
        *(artifacts[address] for address in removed),
        *entries.values(),
        *folders.values(),
        *checkouts.values(),
        *signed.values(),
        *strays.values(),
    ]
    return GarbageReport(
        removed=tuple(sorted(removed)),
        leftovers=tuple(sorted(map(str, [*folders, *map(store.cache.folder, checkouts), *strays]))),
        entries=len(entries),
        bytes=sum(stored.size for stored in gone),
        kept=len(artifacts.keys() & used),
        young=len(young - used),
        dry_run=dry_run,
    )


def _in_use(registry: Registry) -> set[str]:
    query = "SELECT DISTINCT artifact_sha256 FROM adapters WHERE status = 'available' OR len(aliases) > 0"
    return {row["artifact_sha256"] for row in registry.sql(query, timeout_s=600)}


def _runs(registry: Registry) -> set[str]:
    query = "SELECT DISTINCT split_part(evaluation_id, '-', 1) AS run FROM evaluations"
    return {row["run"] for row in registry.sql(query, timeout_s=600)}


def _by_address(files: Mapping[str, Stored]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for key, stored in files.items():
        address = Path(key).parent.name
        if is_sha256(address):
            before = found.get(address, Stored(0, 0.0))
            found[address] = Stored(before.size + stored.size, max(before.modified, stored.modified))
    return found


def _with_lenders(addresses: Collection[str], loans: Collection[Loan]) -> set[str]:
    live: set[str] = set()
    pending = set(addresses)
    while pending:
        live |= pending
        pending = {lender for lender, borrower in loans if borrower in pending} - live
    return live


def _dangling(place: Place, live: Collection[str]) -> dict[str, Stored]:
    entries = place.listing(TENSORS)
    contents = place.read(entries.keys())
    return {key: stored for key, stored in entries.items() if lender_of(contents.get(key, b"")) not in live}


def _old(found: Mapping[_Key, Stored], before: float) -> dict[_Key, Stored]:
    return {key: stored for key, stored in found.items() if stored.modified <= before}


def _remove(store: ArtifactStore, garbage: Collection[str], before: float) -> set[str]:
    # What borrows goes before what lends, in as many rounds as that takes; what is wanted again stays.
    pending = set(garbage)
    while gone := {address for address in pending if store.remove(address, unless_wanted_since=before)}:
        pending -= gone
    return set(garbage) - pending
