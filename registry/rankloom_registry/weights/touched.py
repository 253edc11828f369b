"""Says which tensors of a base an adapter modifies, without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rankloom_registry.artifacts.keys import changed_tensors, parse_key
from rankloom_registry.errors import ArtifactError
from rankloom_registry.formats.safetensors import read_safetensors_header


def touched_tensors(adapter: str | os.PathLike[str], names: Collection[str]) -> set[str]:
    """Find the tensors of a base that an adapter modifies.

    Args:
        adapter: The folder that PEFT saved it to.
        names: The names of all tensors of its base, such as the keys that `read_base` gives.

    Returns:
        Those of them that the adapter's LoRA factors, biases, magnitudes and whole modules change; for an output head
        that the base does not hold, being tied to its embedding, the embedding.

    Raises:
        ArtifactError: If the adapter is malformed, or one of its tensors has no place among the names.
    """
    folder = Path(adapter)
    config = read_config(folder / "adapter_config.json")
    if config.get("layer_replication"):
        raise ArtifactError(f"{folder} repeats layers of its base (layer_replication), which is not supported here")
    try:
        header = read_safetensors_header(folder / "adapter_model.safetensors")
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename}: {error.strerror}; give the adapter's folder") from error
    known = frozenset(names)
    if not isinstance(targets := config.get("target_parameters") or [], list):
        raise ArtifactError(
            f"target_parameters in {folder} is a list of names, got {targets!r}; save the adapter again"
        )
    parameters = [str(name).rpartition(".")[2] for name in targets]
    touched: set[str] = set()
    for name in header.tensors:
        key = parse_key(name)
        found = changed_tensors(key, known, parameters) if key else []
        if not found:
            raise ArtifactError(
                f"tensor {name!r} of {folder} has no place in the base; give the base it was trained on"
            )
        touched.update(found)
    return touched


def read_config(path: Path) -> dict[str, Any]:
    """Read an adapter's configuration.

    Raises:
        ArtifactError: If the file is missing, or holds no JSON object.
    """
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}; give the adapter's folder") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}; save the adapter again") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} holds no JSON object; save the adapter again")
    return config
