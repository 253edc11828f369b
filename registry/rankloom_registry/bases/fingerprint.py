"""Tells base models apart by what they hold: a name is a label, never proof."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rankloom_registry.bases.leaf_cache import LeafCache
from rankloom_registry.bases.leaves import hash_tensor, sample_tensor
from rankloom_registry.errors import FingerprintError
from rankloom_registry.formats.checkpoint import Checkpoint, open_checkpoint
from rankloom_registry.formats.gguf import GgufFile, open_gguf
from rankloom_registry.formats.safetensors import DTYPES, Layout
from rankloom_registry.records import BaseFingerprint

Progress = Callable[[int, int], None]

# Tensors are hashed side by side, each on one core: a block then never leaves that core's cache.
_THREADS = min(os.cpu_count() or 1, 8)

# Keys of config.json that say who saved it, how, or in what precision; not what the model computes.
_IDLE_KEYS = frozenset({"dtype", "torch_dtype", "transformers_version", "use_cache"})
# An output head that is the embedding again; with tied embeddings a checkpoint may hold it or leave it out.
_HEADS = frozenset({"lm_head.weight", "language_model.lm_head.weight", "embed_out.weight"})


def read_base(
    path: str | os.PathLike[str], *, identity: str | None = None, progress: Progress | None = None
) -> tuple[BaseFingerprint, dict[str, str]]:
    r"""Read a base model's weights and say what they are, as a whole and tensor by tensor.

    The content root is the SHA-256 over the sorted `name \0 leaf` of its tensors, a leaf being the BLAKE3 of dtype,
    shape and bytes. BF16, F16 and F32 are hashed as BF16 where that holds every value of the tensor exactly, otherwise
    as F32, so that the same weights in other shards, in another order or upcast without loss have the same root. A
    quantized tensor is its own content: it does not equal the tensor that it was made from, nor the one that it is
    dequantized to.

    Args:
        path: A folder with `model.safetensors` or a sharded `model.safetensors.index.json`, or one .safetensors or
            .gguf file.
        identity: The label, such as `hub-id@commit`; by default the resolved path, after `gguf:` for such a file.
        progress: Called with the bytes hashed so far and the bytes in all.

    Returns:
        The fingerprint, and each tensor's name with its leaf in hexadecimal; a tied output head is left out.

    Raises:
        FingerprintError: If the path does not hold a model as safetensors or GGUF.
    """
    weights = _open(Path(path))
    leaves = _without_tied_head(_leaves(weights, progress), weights.config)
    kept = {name: span for name, span in weights.tensors.items() if name in leaves}
    elements = Counter[str]()
    for span in kept.values():
        elements[DTYPES[span.dtype][1] if span.dtype in DTYPES else span.dtype.lower()] += math.prod(span.shape)
    label = f"{'gguf:' if isinstance(weights, GgufFile) else ''}{Path(path).resolve()}"
    fingerprint = BaseFingerprint(
        identity=identity or label,
        structure=_structure(weights),
        content_root=root_of(leaves),
        tensors=len(kept),
        parameters=elements.total(),
        bytes=sum(span.nbytes for span in kept.values()),
        dtype=elements.most_common(1)[0][0],
        tokenizer_sha256=weights.tokenizer_sha256(),
        chat_template_sha256=weights.chat_template_sha256(),
        config=_normalised(weights.config),
        sampled=_sampled(weights),
        quantization_sha256=_sha256_json(weights.quantization) if weights.quantization else None,
    )
    return fingerprint, leaves


def fingerprint_base(
    path: str | os.PathLike[str], *, identity: str | None = None, progress: Progress | None = None
) -> BaseFingerprint:
    """Read a base model's weights and say what they are: the first part of `read_base`, which says how.

    Args:
        path: As for `read_base`.
        identity: As for `read_base`.
        progress: As for `read_base`.

    Returns:
        The fingerprint.

    Raises:
        FingerprintError: If the path does not hold a model as safetensors or GGUF.
    """
    return read_base(path, identity=identity, progress=progress)[0]


def tensor_leaves(path: str | os.PathLike[str], *, progress: Progress | None = None) -> dict[str, str]:
    """Hash each tensor of a base model: the second part of `read_base`, which says how.

    Args:
        path: As for `read_base`.
        progress: As for `read_base`.

    Returns:
        Tensor name to leaf, in hexadecimal; a tied output head is left out.

    Raises:
        FingerprintError: If the path does not hold a model as safetensors or GGUF.
    """
    weights = _open(Path(path))
    return _without_tied_head(_leaves(weights, progress), weights.config)


def touched_root(path: str | os.PathLike[str], names: Collection[str], *, progress: Progress | None = None) -> str:
    """Hash only some tensors of a base model: those that an adapter modifies are what merging it needs.

    Args:
        path: As for `read_base`.
        names: The tensors' names, as `touched_tensors` gives them.
        progress: As for `read_base`, of these tensors.

    Returns:
        What `root_of` makes of their leaves.

    Raises:
        FingerprintError: If the path does not hold a model as safetensors or GGUF, or lacks one of the tensors.
    """
    weights = _open(Path(path))
    if missing := sorted(set(names) - weights.tensors.keys()):
        raise FingerprintError(f"{path} lacks the tensor {missing[0]}; give the base that the adapter was trained on")
    return root_of(_leaves(weights, progress, only=frozenset(names)))


def sample_base(path: str | os.PathLike[str]) -> str:
    """Hash a few pieces of each tensor of a base model, in milliseconds.

    A tripwire, never proof: what differs from one look to the next has changed, but a change elsewhere goes unnoticed.
    It is the same for the same weights in other shards or upcast without loss, as the content root is.

    Args:
        path: As for `read_base`.

    Returns:
        What `read_base` says of it as `sampled`.

    Raises:
        FingerprintError: If the path does not hold a model as safetensors or GGUF.
    """
    return _sampled(_open(Path(path)))


def root_of(leaves: Mapping[str, str]) -> str:
    r"""Make one hash of many: the SHA-256 over the sorted `name \0 leaf`.

    Args:
        leaves: Tensor name to leaf.

    Returns:
        The root in hexadecimal.
    """
    lines: Iterable[bytes] = (f"{name}\0{leaves[name]}\n".encode() for name in sorted(leaves))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _open(path: Path) -> Checkpoint | GgufFile:
    return open_gguf(path) if path.is_file() and path.suffix == ".gguf" else open_checkpoint(path)


def _leaves(
    weights: Checkpoint | GgufFile, progress: Progress | None, *, only: frozenset[str] | None = None
) -> dict[str, str]:
    wanted = {name: span for name, span in weights.tensors.items() if only is None or name in only}
    total = sum(span.nbytes for span in wanted.values())
    done = 0
    leaves: dict[str, str] = {}
    cache = LeafCache.load()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for file, layout in weights.files.items():
            before = file.stat()
            known = cache.get(before) or {}
            # The largest first, so that no core is left alone with one at the end.
            names = sorted(filter(wanted.__contains__, layout.tensors), key=lambda name: -wanted[name].nbytes)
            for name, leaf in zip(names, pool.map(partial(_leaf, file, layout, known), names), strict=True):
                leaves[name] = leaf
                done += wanted[name].nbytes
                if progress:
                    progress(done, total)
            if fresh := {name: leaves[name] for name in names if name not in known}:
                cache.put(before, file.stat(), known | fresh)
    finally:  # also when it is interrupted: the files that were done need not be hashed again
        pool.shutdown(cancel_futures=True)
        cache.save()
    return {name: leaves[name] for name in wanted}


def _leaf(file: Path, layout: Layout, known: Mapping[str, str], name: str) -> str:
    return known.get(name) or hash_tensor(file, layout, name)


def _sampled(weights: Checkpoint | GgufFile) -> str:
    samples: dict[str, str] = {}
    for path, layout in weights.files.items():
        with path.open("rb", buffering=0) as file:
            samples |= {name: sample_tensor(file, layout, name) for name in layout.tensors}
    return root_of(_without_tied_head(samples, weights.config))


def _without_tied_head(leaves: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    if not _tied(config):
        return dict(leaves)
    # A head that differs from the embedding is not tied to it, whatever the configuration says.
    seen = Counter(leaves.values())
    return {name: leaf for name, leaf in leaves.items() if not (name in _HEADS and seen[leaf] > 1)}


def _tied(config: Mapping[str, Any]) -> bool:
    # What is not said is tied: configurations leave out the value that transformers takes by default.
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    return bool(config.get("tie_word_embeddings", True if inner is None else inner))


def _structure(weights: Checkpoint | GgufFile) -> str:
    heads = _HEADS if _tied(weights.config) else frozenset()
    shapes = sorted((name, list(span.shape)) for name, span in weights.tensors.items() if name not in heads)
    return _sha256_json([shapes, _normalised(weights.config)])


def _normalised(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in sorted(config) if not key.startswith("_") and key not in _IDLE_KEYS}


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
