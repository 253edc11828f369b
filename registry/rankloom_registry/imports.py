"""Takes in an adapter that no search of this registry made, after every check there is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rankloom_registry.artifacts import check_against_base, check_folder
from rankloom_registry.bases.fingerprint import read_base
from rankloom_registry.events.kinds import AdapterAdded, BaseSeen
from rankloom_registry.formats.checkpoint import open_checkpoint
from rankloom_registry.names import validate_name
from rankloom_registry.records import Adapter
from rankloom_registry.registry import Registry
from rankloom_registry.weights.lora import LoraAdapter
from rankloom_registry.weights.measures import read_weights


class Imported(NamedTuple):
    """An adapter, and whether it is `new` to the registry."""

    adapter: Adapter
    new: bool


def import_adapter(
    registry: Registry | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str],
    *,
    name: str | None = None,
    identity: str | None = None,
    allow: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Check a PEFT adapter against the base that it was trained on, keep a copy of its files, and record both.

    Args:
        registry: Where to; of a path, one is made there if there is none, as soon as every check has passed.
        folder: The folder that PEFT saved the adapter to.
        base: The base model in full precision, as for `fingerprint_base`.
        name: The adapter's name; by default the folder's.
        identity: The base's label, such as `hub-id@commit`; by default its resolved path.
        allow: What is refused by default and taken this time, as for `check_folder`.
        progress: Called with the bytes of the base hashed so far, and the bytes in all.

    Returns:
        The adapter; the one that is there if the same files on the same base are registered.

    Raises:
        ArtifactError: If the folder holds what is refused, or does not fit the base.
        FingerprintError: If the base cannot be read.
        InvalidNameError: If the name, or without one the folder's, breaks the rule for names.
        RegistryError: If the path is of no registry, or one that cannot be written.
    """
    if not isinstance(registry, Registry):
        Registry.check(registry)  # before a large base is hashed
    source = Path(folder).resolve()
    name = validate_name(source.name if name is None else name)
    checkpoint = open_checkpoint(Path(base))
    check_folder(source, allow=allow)
    check_against_base(source, checkpoint, allow=allow)
    fingerprint, leaves = read_base(base, identity=identity, progress=progress)
    metrics = read_weights(source).summary()
    if not isinstance(registry, Registry):
        registry = Registry.open(registry, create=True)
    address = registry.artifacts.add(source, allow=allow)
    kept = registry.artifacts.checkout(address)
    root = fingerprint.content_root
    known = registry.adapters(where=f"artifact_sha256 = '{address}' and base_content_root = '{root}'")
    for adapter in known:
        if adapter.status == "available":
            return Imported(adapter, new=False)
    config = LoraAdapter(kept).config
    added = AdapterAdded(
        # One that was discarded keeps its id, and its record.
        adapter_id=hashlib.sha256(f"{address}:{root}:{len(known)}".encode()).hexdigest()[:12],
        name=name,
        base_content_root=root,
        params=_params(config),
        metrics=metrics,
        artifact_sha256=address,
        why=f"imported from {source}",
    )
    registry.record(BaseSeen(base=fingerprint, leaves=leaves), added)
    return Imported(registry.adapter(added.adapter_id), new=True)


def _params(config: Mapping[str, Any]) -> dict[str, Any]:
    targets = config.get("target_modules")
    return {
        "r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"),
        "use_rslora": bool(config.get("use_rslora")),
        "lora_dropout": config.get("lora_dropout"),
        "target_modules": sorted(targets) if isinstance(targets, list) else targets,
    }
