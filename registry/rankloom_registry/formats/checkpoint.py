"""Finds the weight files, configuration and tokenizer of a base model on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankloom_registry.errors import ArtifactError, FingerprintError
from rankloom_registry.formats.safetensors import SafetensorsHeader, TensorSpan, read_safetensors_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A base model as it lies on disk.

    Args:
        folder: The folder that holds it.
        files: The header of each weight file.
        config: `config.json`; empty if there is none.
    """

    folder: Path
    files: dict[Path, SafetensorsHeader]
    config: dict[str, Any]

    @property
    def tensors(self) -> dict[str, TensorSpan]:
        """The tensors of all files."""
        return {name: span for header in self.files.values() for name, span in header.tensors.items()}

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the weights were quantized, or None."""
        return self.config.get("quantization_config") or None

    def tokenizer_sha256(self) -> str | None:
        """SHA-256 of the tokenizer's file, or None."""
        for name in ("tokenizer.json", "tokenizer.model"):
            if (self.folder / name).is_file():
                return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        return None

    def chat_template_sha256(self) -> str | None:
        """SHA-256 of the chat template's text, wherever it is kept, or None."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()
        template = _read_json(self.folder / "tokenizer_config.json").get("chat_template")
        if not template:
            return None
        text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def open_checkpoint(path: Path) -> Checkpoint:
    """Find the files of a base model and read their headers.

    Args:
        path: A folder with `model.safetensors` or `model.safetensors.index.json`, or one .safetensors file.

    Returns:
        The checkpoint.

    Raises:
        FingerprintError: If there is no model as safetensors, or its files do not fit together.
    """
    if path.is_file() and path.suffix == ".safetensors":
        folder, files = path.parent, [path]
    elif path.is_dir():
        folder, files = path, _weight_files(path)
    elif path.is_file() and path.suffix in _PICKLES:
        raise _pickled(str(path))
    else:
        raise FingerprintError(f"{path} is neither a model folder nor a .safetensors file; give one of them")
    headers: dict[Path, SafetensorsHeader] = {}
    seen: set[str] = set()
    for file in files:
        try:
            headers[file] = read_safetensors_header(file)
        except (ArtifactError, FileNotFoundError) as error:
            raise FingerprintError(str(error)) from error
        if twice := seen & headers[file].tensors.keys():
            raise FingerprintError(f"tensor {min(twice)!r} lies in two files of {folder}; download the model again")
        seen |= headers[file].tensors.keys()
    if not seen:
        raise FingerprintError(f"{path} holds no tensor; download the model again")
    return Checkpoint(folder=folder, files=headers, config=_read_json(folder / "config.json"))


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():  # transformers takes it first, too
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        shards = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise FingerprintError(f"{folder / INDEX} names no weight file; download the model again")
        names = sorted(set(map(str, shards.values())))
        if outside := [name for name in names if Path(name).name != name]:
            raise FingerprintError(f"{folder / INDEX} names a file outside its folder: {outside[0]!r}")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise FingerprintError(f"{folder} lacks {missing[0]}, which its index names; download the model again")
        return [folder / name for name in names]
    if (folder / "adapter_config.json").is_file():
        raise FingerprintError(f"{folder} is an adapter; give the folder of the base model it belongs to")
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES):
        raise _pickled(f"{folder} holds {pickles[0]}, which")
    if quantized := sorted(path.name for path in folder.glob("*.gguf")):
        raise FingerprintError(f"{folder} holds {quantized[0]}, and a GGUF base is one file; give that file itself")
    raise FingerprintError(f"{folder} holds neither {SINGLE} nor {INDEX}; give the folder of a model")


def _pickled(what: str) -> FingerprintError:
    return FingerprintError(
        f"{what} is a pickle and could run code when read; convert it once, where you trust it, with "
        "AutoModel.from_pretrained(...).save_pretrained(...), which writes safetensors"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise FingerprintError(f"{path} is not JSON: {error}; download the model again") from error
    if not isinstance(data, dict):
        raise FingerprintError(f"{path} is not a JSON object; download the model again")
    return data
