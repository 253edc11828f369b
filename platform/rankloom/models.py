"""Where a base model comes from: a hub id, a local folder or a GGUF file become one local safetensors folder."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import struct
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankloom.errors import ModelError
from rankloom_registry.files import sync_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*", "README.md"]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base on this machine.

    Attributes:
        path: Folder with config.json, tokenizer and full-precision safetensors.
        identity: 'hub-id@commit', or the path that was given.
    """

    path: Path
    identity: str


def cache_folder() -> Path:
    """Folder for what can be made again: `$XDG_CACHE_HOME/rankloom` or `~/.cache/rankloom`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankloom"


def resolve_base(name_or_path: str, revision: str | None = None) -> BaseModel:
    """Return the local safetensors folder of a base, downloading or dequantizing it once if need be.

    Args:
        name_or_path: Local folder, `.gguf` file, or hub id.
        revision: Branch, tag or commit; hub ids only.

    Raises:
        ModelError: It is none of these, or lacks config.json, a tokenizer or safetensors weights.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix == ".gguf":
        return BaseModel(path=dequantized(path), identity=str(path.absolute()))
    if path.is_dir():
        return BaseModel(path=_checked(path.absolute()), identity=str(path.absolute()))
    if path.exists() or path.is_absolute() or name_or_path.startswith((".", "~")):
        raise ModelError(
            f"a base must be a folder, a .gguf file or a hub id, got {name_or_path!r}: "
            + ("it is not a folder" if path.exists() else "no such folder")
        )
    if not HUB_ID.fullmatch(name_or_path):
        raise ModelError(f"{name_or_path!r} is neither a folder nor a hub id: check the path")
    return _from_hub(name_or_path, revision)


def split_identity(identity: str) -> tuple[str, str | None]:
    """Return what `resolve_base` takes to find a `BaseModel.identity` again: name or path, and revision."""
    name, at, commit = identity.partition("@")
    # A hub id holds no '@', but a path may.
    return (name, commit) if at and HUB_ID.fullmatch(name) else (identity, None)


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model folder: it holds no config.json; point at the folder that does")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ModelError(
            f"{folder} holds no safetensors weights ({' or '.join(WEIGHTS)}): save the model with "
            "save_pretrained(); pickled .bin weights are not read"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{folder} holds no tokenizer: save the model's tokenizer beside it")
    return folder


def _from_hub(name: str, revision: str | None) -> BaseModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=HUB_FILES)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name!r} is no folder here and could not be had from the hub ({type(error).__name__}): "
            "check the spelling and the network, or give a local folder"
        ) from error
    # The hub's cache names a snapshot's folder after the resolved commit.
    commit = Path(folder).name
    return BaseModel(path=_checked(Path(folder)), identity=f"{name}@{commit}")


def dequantized(gguf: Path) -> Path:
    """Dequantize a GGUF file into a safetensors folder in the cache, once, and return that folder.

    Raises:
        ModelError: The file is missing, is not GGUF or torn, or the `gguf` extra is not installed.
    """
    import hashlib
    import importlib.util

    if not gguf.is_file():
        raise ModelError(f"no GGUF file at {str(gguf)!r}: check the path")
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{gguf} does not start with GGUF's magic bytes: it is not a GGUF file")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading a .gguf base needs the 'gguf' extra: pip install 'rankloom[gguf]'")
    status = gguf.stat()
    key = hashlib.sha256(f"{gguf.absolute()}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_folder() / "models" / f"{gguf.stem}-{key}"
    if target.is_dir():
        return target

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
        # Its progress bar is transformers' own and cannot be switched off.
        with contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **source
            )
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(partial)
        for written in partial.iterdir():
            with written.open("rb") as handle:
                os.fsync(handle.fileno())
        if not target.is_dir():  # another process may have been faster
            partial.rename(target)
        sync_folder(target.parent)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(
            f"{gguf} cannot be read as a GGUF model ({type(error).__name__}: {' '.join(str(error).split())[:200]}): "
            "is it whole, and a causal language model that transformers knows?"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a base's tokenizer from its folder, with a padding token.

    Raises:
        ModelError: The tokenizer cannot be read or has neither a padding nor an end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load the tokenizer in {folder}: {error}") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer in {folder} has no pad_token and no eos_token: set one of them")
        tokenizer.pad_token = tokenizer.eos_token
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def load_model_config(folder: Path) -> Any:
    """Load a base's transformers configuration.

    Raises:
        ModelError: config.json names no architecture that transformers knows.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read the model configuration in {folder}: {error}") from error


@lru_cache(maxsize=8)
def leaf_modules(folder: Path) -> dict[str, str]:
    """Map each leaf module of the base to its class name, without allocating weights.

    Raises:
        ModelError: The folder's architecture has no causal language model in transformers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_model_config(folder)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(f"{folder} is not a causal language model: {error}") from error
    return {name: type(module).__name__ for name, module in model.named_modules() if not any(module.children())}
