"""Says which tensors of a base an adapter modifies, without torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rankloom_registry.errors import ArtifactError
from rankloom_registry.formats.safetensors import read_safetensors_header

_PREFIX = "base_model.model."
# What PEFT adds to a module: the parameter that it changes is the module's own.
_ADDED = re.compile(r"\.(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|token_adapter)(?:\..*)?$")
_WRAPPERS = re.compile(r"\.(?:base_layer|modules_to_save)(?=\.)")
_HEADS = frozenset({"lm_head", "embed_out"})
_EMBEDDINGS = re.compile(r"(?:^|.*\.)(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight")


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
    for key in header.tensors:
        found = _places(key, known, parameters)
        if not found:
            raise ArtifactError(f"tensor {key!r} of {folder} has no place in the base; give the base it was trained on")
        touched |= found
    return touched


def base_tensor(parameter: str, names: Collection[str]) -> str | None:
    """Find the name that a base's checkpoint has for a parameter of the model.

    Args:
        parameter: Its name in the model, such as `transformer.h.0.attn.c_attn.weight`.
        names: The checkpoint's names; a set or a mapping.

    Returns:
        The name, or None if the checkpoint lacks the parameter.
    """
    # A checkpoint of the inner model (GPT-2's `h.0…`) lacks the first part of the parameter's name.
    return next((name for name in (parameter, parameter.partition(".")[2]) if name in names), None)


def _places(key: str, names: frozenset[str], parameters: Collection[str]) -> set[str]:
    parameter, added = _ADDED.subn("", _WRAPPERS.sub("", key.removeprefix(_PREFIX)))
    if not added:
        wanted = [parameter]
    elif key.endswith(".lora_B.bias"):
        wanted = [f"{parameter}.bias"]
    else:
        # Factors of a parameter that is not called `weight` (a mixture's experts) name only its module.
        wanted = [f"{parameter}.{own}" for own in ("weight", *parameters)]
    found = {name for one in wanted if (name := base_tensor(one, names)) is not None}
    if not found and wanted[0].rpartition(".")[0] in _HEADS:
        return {name for name in names if _EMBEDDINGS.fullmatch(name)}
    return found


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
