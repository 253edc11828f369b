"""Tells base models apart by what they hold: a name is a label, never proof."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rankloom_registry.checkpoint import Checkpoint, open_checkpoint
from rankloom_registry.leaf_cache import LeafCache
from rankloom_registry.leaves import hash_tensor
from rankloom_registry.records import BaseFingerprint
from rankloom_registry.safetensors import DTYPES

Progress = Callable[[int, int], None]

# Keys of config.json that say who saved it, how, or in what precision; not what the model computes.
_IDLE_KEYS = frozenset({"dtype", "torch_dtype", "transformers_version", "use_cache"})
# An output head that is the embedding again; with tied embeddings a checkpoint may hold it or leave it out.
_HEADS = frozenset({"lm_head.weight", "language_model.lm_head.weight", "embed_out.weight"})


def fingerprint_base(
    path: str | os.PathLike[str], *, identity: str | None = None, progress: Progress | None = None
) -> BaseFingerprint:
    r"""Read a base model's weights and say what they are.

    The content root is the SHA-256 over the sorted `name \0 leaf` of its tensors, a leaf being the BLAKE3 of dtype,
    shape and bytes. BF16, F16 and F32 are hashed as the float32 that holds their values exactly, so that the same
    weights in other shards, in another order or upcast without loss have the same root.

    Args:
        path: A folder with `model.safetensors` or a sharded `model.safetensors.index.json`, or one .safetensors file.
        identity: The label, such as `hub-id@commit`; by default the resolved path.
        progress: Called with the bytes hashed so far and the bytes in all.

    Returns:
        The fingerprint.

    Raises:
        FingerprintError: If the path does not hold a model as safetensors.
    """
    checkpoint = open_checkpoint(Path(path))
    leaves = _leaves(checkpoint, progress)
    kept = {name: span for name, span in checkpoint.tensors.items() if name in leaves}
    elements = Counter[str]()
    for span in kept.values():
        elements[DTYPES[span.dtype][1]] += math.prod(span.shape)
    return BaseFingerprint(
        identity=identity or str(Path(path).resolve()),
        structure=_structure(checkpoint),
        content_root=_root(leaves),
        tensors=len(kept),
        parameters=elements.total(),
        bytes=sum(span.end - span.start for span in kept.values()),
        dtype=elements.most_common(1)[0][0],
        tokenizer_sha256=checkpoint.tokenizer_sha256(),
        chat_template_sha256=checkpoint.chat_template_sha256(),
        config=_normalised(checkpoint.config),
    )


def tensor_leaves(path: str | os.PathLike[str], *, progress: Progress | None = None) -> dict[str, str]:
    """Hash each tensor of a base model, so that two of them can be compared tensor by tensor.

    Args:
        path: As for `fingerprint_base`.
        progress: As for `fingerprint_base`.

    Returns:
        Tensor name to leaf, in hexadecimal; a tied output head is left out.

    Raises:
        FingerprintError: If the path does not hold a model as safetensors.
    """
    return _leaves(open_checkpoint(Path(path)), progress)


def _leaves(checkpoint: Checkpoint, progress: Progress | None) -> dict[str, str]:
    cache = LeafCache.load()
    total = sum(span.end - span.start for span in checkpoint.tensors.values())
    done = 0
    leaves: dict[str, str] = {}
    for file, header in checkpoint.files.items():
        before = file.stat()
        known = cache.get(before)
        found: dict[str, str] = {}
        for name, span in header.tensors.items():
            leaf = known.get(name) if known else None
            found[name] = leaf or hash_tensor(file, header, name)
            done += span.end - span.start
            if progress:
                progress(done, total)
        if known is None:
            cache.put(before, file.stat(), found)
        leaves |= found
    cache.save()
    return _without_tied_head(leaves, checkpoint.config)


def _without_tied_head(leaves: dict[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    if not _tied(config):
        return leaves
    # A head that differs from the embedding is not tied to it, whatever the configuration says.
    seen = Counter(leaves.values())
    return {name: leaf for name, leaf in leaves.items() if not (name in _HEADS and seen[leaf] > 1)}


def _tied(config: Mapping[str, Any]) -> bool:
    # What is not said is tied: configurations leave out the value that transformers takes by default.
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    return bool(config.get("tie_word_embeddings", True if inner is None else inner))


def _structure(checkpoint: Checkpoint) -> str:
    heads = _HEADS if _tied(checkpoint.config) else frozenset()
    shapes = sorted((name, list(span.shape)) for name, span in checkpoint.tensors.items() if name not in heads)
    return _sha256_json([shapes, _normalised(checkpoint.config)])


def _normalised(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in sorted(config) if not key.startswith("_") and key not in _IDLE_KEYS}


def _root(leaves: Mapping[str, str]) -> str:
    lines: Iterable[bytes] = (f"{name}\0{leaves[name]}\n".encode() for name in sorted(leaves))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
