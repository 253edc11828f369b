"""Whether an adapter fits a base: every tensor of it has a place there, and the shape of that place."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from rankloom_registry.artifacts.checks import check_files
from rankloom_registry.artifacts.keys import Lora, Pairs, Shape, Whole, changed_tensors, matrix_pairs, parse_key
from rankloom_registry.artifacts.place import WEIGHTS
from rankloom_registry.errors import ArtifactError
from rankloom_registry.formats.checkpoint import Checkpoint
from rankloom_registry.formats.safetensors import TensorSpan, read_safetensors_header

# In a base that was quantized before it was saved, a weight is packed: its name tells where it is, its shape nothing.
_PLAIN = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


def check_against_base(folder: str | os.PathLike[str], base: Checkpoint, *, allow: Collection[str] = ()) -> None:
    """Check that an adapter's tensors fit a base: what `check_folder` cannot see.

    Args:
        folder: A folder that `check_folder` passed.
        base: The base, as `open_checkpoint` returned it.
        allow: As for `check_folder`.

    Raises:
        ArtifactError: If a tensor has no place in the base, or another shape than that place.
    """
    check_files(Path(folder), allow=allow)  # before one of them is opened
    path = Path(folder) / WEIGHTS
    tensors, places = read_safetensors_header(path).tensors, base.tensors
    pairs = matrix_pairs(tensors)
    for name, span in tensors.items():
        key = parse_key(name)
        place = key and _place(key, places)
        if key is None or place is None:
            raise ArtifactError(
                f"every tensor of an adapter has a place in its base; {name!r} in {path} has none in {base.folder}; "
                "give the base that the adapter was trained on"
            )
        if place.dtype not in _PLAIN:
            continue
        if isinstance(key, Whole):
            fits = _replaces(key, span.shape, place.shape)
        else:
            fits = _adds(key, span.shape, place.shape, pairs)
        if not fits:
            raise ArtifactError(
                f"{name!r} in {path} has the shape {list(span.shape)}, which does not fit {list(place.shape)} in "
                f"{base.folder}; give the base that the adapter was trained on"
            )


def _place(key: Lora | Whole, tensors: Mapping[str, TensorSpan]) -> TensorSpan | None:
    if isinstance(key, Lora):
        # Every part of an update has a size of the weight; its bias may be one that the module lacks.
        key = key._replace(half="B")
    # A head that is tied to the embeddings is in no file; it has their shape.
    return next((tensors[name] for name in changed_tensors(key, tensors)), None)


def _replaces(key: Whole, shape: Shape, place: Shape) -> bool:
    return shape[1:] == place[1:] if key.leaf == "trainable_tokens_delta" else shape == place


def _adds(key: Lora, shape: Shape, place: Shape, pairs: Pairs) -> bool:
    a, b = pairs.get(key.module, (None, None))
    if a is None or b is None:
        return False
    # Conv1D, which GPT-2 is made of, keeps a weight as (in, out); its file does not say so.
    orders = [place, place[::-1]] if len(place) == 2 else [place]
    fitting = [order for order in orders if a[1:] == order[1:] and b[:1] == order[:1]]
    return any(key.is_matrix or shape == order[:1] for order in fitting)
