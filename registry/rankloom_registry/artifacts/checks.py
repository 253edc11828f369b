"""What an adapter's folder may hold: everything that could run code, reach elsewhere or break a merge is refused."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankloom_registry.artifacts.keys import Lora, matrix_pairs, parse_key
from rankloom_registry.artifacts.place import CONFIG, WEIGHTS
from rankloom_registry.errors import ArtifactError, InvalidNameError
from rankloom_registry.formats.safetensors import SafetensorsHeader, float32_blocks, read_safetensors_header
from rankloom_registry.names import validate_name

FLAGS: dict[str, str] = {
    "modules-to-save": "whole modules or biases that were trained beside the low-rank matrices",
    "embeddings": "full input embeddings or an output head",
    "tokenizer": "a tokenizer or chat template of the adapter's own",
}
MAX_RANK = 4096
MAX_TENSOR_BYTES = 16 << 30  # embeddings of 262,144 tokens and 16,384 dimensions in float32
MAX_WEIGHTS_BYTES = 64 << 30
_MAX_TEXT_BYTES = 4 << 20
_MAX_TOKENIZER_BYTES = 64 << 20

_README = "README.md"
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json"),
)
_KINDS = {
    "a pickle, which can run code when it is read": (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"),
    "an archive, which can hold anything": (
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".bz2",
        ".xz",
        ".zst",
        ".7z",
        ".rar",
        ".whl",
    ),
    "code": (".py", ".pyc", ".so", ".sh", ".ipynb", ".js"),
}

# What tells a loader to run or import code of the adapter's choice.
_CODE = frozenset({"auto_mapping", "auto_map", "trust_remote_code", "custom_modules", "_custom_modules"})
# What tells a loader where to read, or to take pickles; PEFT gives the files of CorDA and LoRA-GA to torch.load.
_LOADING = frozenset(
    {
        *("cache_dir", "cache_file", "code_revision", "covariance_file", "device_map", "force_download"),
        *("hub_kwargs", "local_files_only", "map_location", "model_kwargs", "pickle_module", "proxies"),
        *("quantization_config", "state_dict", "subfolder", "token", "use_auth_token", "use_safetensors"),
        "weights_only",
    }
)


def check_folder(folder: str | os.PathLike[str], *, allow: Collection[str] = ()) -> None:
    """Check a PEFT adapter folder, as far as that can be done without its base.

    Args:
        folder: The folder.
        allow: What is refused unless it is named here: the keys of `FLAGS`.

    Raises:
        ArtifactError: If something is not allowed, missing or broken; the message names it, and what to do.
    """
    folder = Path(folder)
    for name in check_files(folder, allow=allow):
        if name not in (CONFIG, WEIGHTS):
            (_check_json if name.endswith(".json") else _check_text)(folder / name)
    path, weights = folder / CONFIG, folder / WEIGHTS
    config = _read_config(path)
    _check_numbers(config, path)
    _check_code(config, path)
    _check_loading(config, path)
    _check_flags(config, path, allow)
    header = read_safetensors_header(weights)
    _check_sizes(header, weights)
    _check_pairs(header, config, weights)
    _check_whole(header, config, weights, allow)
    _check_finite(header, weights)


def check_files(folder: Path, *, allow: Collection[str] = ()) -> list[str]:
    """Check the names, kinds and sizes of the files in an adapter folder, without opening one.

    Args:
        folder: The folder.
        allow: As for `check_folder`.

    Returns:
        The names, sorted.

    Raises:
        ArtifactError: If a file is missing or not allowed.
    """
    if unknown := sorted(set(allow) - FLAGS.keys()):
        raise ArtifactError(f"what can be allowed is {', '.join(FLAGS)}; got {unknown[0]!r}")
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; give the folder that save_pretrained wrote the adapter to")
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        _check_file(folder / name, allow)
    if missing := [name for name in (CONFIG, WEIGHTS) if name not in names]:
        raise ArtifactError(f"{folder} lacks {', '.join(missing)}; give a PEFT adapter saved as safetensors")
    return names


def size_limit(name: str) -> int:
    """The most bytes that a file of this name may have."""
    if name == WEIGHTS:
        return MAX_WEIGHTS_BYTES
    return _MAX_TOKENIZER_BYTES if name in _TOKENIZER else _MAX_TEXT_BYTES


def _check_file(path: Path, allow: Collection[str]) -> None:
    name = path.name
    try:
        validate_name(name)
    except InvalidNameError as error:
        raise ArtifactError(f"{path.parent} holds a file whose name is refused: {error}") from None
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise ArtifactError(f"{path} is a link, and links are not followed; copy the folder with `cp -rL` first")
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{path} is not a regular file; an adapter folder holds nothing else")
    for kind, suffixes in _KINDS.items():
        if name.lower().endswith(suffixes):
            raise ArtifactError(f"{path} is {kind}; remove it, or save the adapter to a folder of its own")
    if name in _TOKENIZER and "tokenizer" not in allow:
        raise ArtifactError(
            f"{path} is of {FLAGS['tokenizer']}, which changes what the model reads; "
            "remove it, or allow 'tokenizer' if you trust it"
        )
    if name not in (CONFIG, WEIGHTS, _README, *_TOKENIZER):
        raise ArtifactError(
            f"an adapter folder holds {CONFIG}, {WEIGHTS}, {_README} and nothing else; {path.parent} also holds "
            f"{name!r}; remove it, or save the adapter to a folder of its own"
        )
    if status.st_size > (limit := size_limit(name)):
        raise ArtifactError(f"{path} has {status.st_size:,} bytes; a file of that name is smaller than {limit:,}")


def _check_text(path: Path) -> None:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}); remove it") from None
    if "\0" in text:
        raise ArtifactError(f"{path} is not text: it holds a zero byte; remove it")


def _check_json(path: Path) -> None:
    # At the top only: below it, a tokenizer's vocabulary may hold any word.
    data = _read_json(path)
    if isinstance(data, dict):
        _check_code({name: bool(value) for name, value in data.items()}, path)


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path)
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} is not a JSON object; save the adapter again")
    if config.get("peft_type") != "LORA":
        raise ArtifactError(f"{path} does not describe a LoRA adapter (peft_type is not 'LORA')")
    return config


def _check_numbers(config: Mapping[str, Any], path: Path) -> None:
    for rank in _values(config, "r", "rank_pattern"):
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise ArtifactError(f"a rank is a whole number from 1 to {MAX_RANK}, got {rank!r} in {path}")
    for alpha in _values(config, "lora_alpha", "alpha_pattern"):
        if alpha is not None and (type(alpha) not in (int, float) or not math.isfinite(alpha)):
            raise ArtifactError(f"lora_alpha is a finite number, got {alpha!r} in {path}; save the adapter again")


def _check_code(config: Mapping[str, Any], path: Path) -> None:
    for name, value in _items(config):
        # PEFT writes this one default into every LoRA configuration.
        megatron = name.startswith("megatron_") and (name, value) != ("megatron_core", "megatron.core")
        if value and (name in _CODE or megatron):
            raise ArtifactError(
                f"{name!r} in {path} names code to import or run, which is refused; remove it, or save the adapter "
                "with task_type='CAUSAL_LM', which needs none"
            )


def _check_loading(config: Mapping[str, Any], path: Path) -> None:
    for name, value in _items(config):
        if name in _LOADING and value is not None:
            raise ArtifactError(
                f"{name!r} in {path} is an argument for a loader, which is refused: an adapter does not say how it is "
                "loaded, or what else is; remove it"
            )


def _check_flags(config: Mapping[str, Any], path: Path, allow: Collection[str]) -> None:
    whole = {
        "modules_to_save": ("modules-to-save", config.get("modules_to_save")),
        "bias": ("modules-to-save", config.get("bias") not in (None, "none") and config["bias"]),
        "trainable_token_indices": ("embeddings", config.get("trainable_token_indices")),
    }
    for name, (flag, value) in whole.items():
        if value and flag not in allow:
            raise ArtifactError(
                f"{path} has {name}={str(value)[:120]}: the adapter brings {FLAGS[flag]}; "
                f"allow {flag!r} if you trust it"
            )


def _check_sizes(header: SafetensorsHeader, path: Path) -> None:
    if not header.tensors:
        raise ArtifactError(f"{path} holds no tensor; save the adapter again")
    for name, span in header.tensors.items():
        if span.end - span.start > MAX_TENSOR_BYTES:
            raise ArtifactError(f"tensor {name!r} in {path} is larger than {MAX_TENSOR_BYTES:,} bytes; split it")


def _check_pairs(header: SafetensorsHeader, config: Mapping[str, Any], path: Path) -> None:
    ranks = set(_values(config, "r", "rank_pattern"))
    for module, (a, b) in matrix_pairs(header.tensors).items():
        if a is None or b is None:
            raise ArtifactError(
                f"lora_A and lora_B come in pairs; {path} has one of {module!r}; save the adapter again"
            )
        if len(a) < 2 or len(b) < 2 or a[0] != b[1] or a[0] not in ranks:
            raise ArtifactError(
                f"lora_A is (r, in) and lora_B (out, r) with r of {sorted(ranks)}; {module!r} in {path} has "
                f"{list(a)} and {list(b)}; save the adapter again"
            )


def _check_whole(header: SafetensorsHeader, config: Mapping[str, Any], path: Path, allow: Collection[str]) -> None:
    for name in header.tensors:
        key = parse_key(name)
        if isinstance(key, Lora):
            continue
        if key and (key.within(config.get("modules_to_save")) or key.is_bias(config.get("bias"))):
            continue  # allowed with the configuration that names it
        if key is None or not key.embeds:
            raise ArtifactError(
                f"tensor {name!r} in {path} is neither a low-rank matrix nor of a module in modules_to_save: it "
                "matches nothing; save the adapter again"
            )
        if "embeddings" not in allow:
            raise ArtifactError(
                f"tensor {name!r} in {path} is of {FLAGS['embeddings']}, which replace the base's; "
                "allow 'embeddings' if you trust it"
            )


def _check_finite(header: SafetensorsHeader, path: Path) -> None:
    for name in header.tensors:
        for block in float32_blocks(path, header, name):
            if not np.isfinite(block).all():
                raise ArtifactError(f"tensor {name!r} in {path} holds NaN or Inf; train with a lower learning_rate")


def _values(config: Mapping[str, Any], name: str, pattern: str) -> list[Any]:
    patterns = config.get(pattern) or {}
    return [config.get(name), *(patterns.values() if isinstance(patterns, dict) else [patterns])]


def _items(data: Any) -> Iterator[tuple[str, Any]]:
    pending = [data]  # a stack of its own: nesting can be deeper than Python's
    while pending:
        match pending.pop():
            case Mapping() as mapping:
                yield from mapping.items()
                pending += mapping.values()
            case list() as items:
                pending += items


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}; save the adapter again") from error
