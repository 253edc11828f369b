"""Keeps the files of adapters in folders named by their content."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

import numpy as np

from rankloom_registry.errors import ArtifactError, RegistryWriteError
from rankloom_registry.files import sync_folder, write_atomically
from rankloom_registry.names import is_sha256
from rankloom_registry.safetensors import float32_blocks, read_safetensors_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MANIFEST = "manifest.json"
MAX_RANK = 4096

_REQUIRED = (CONFIG, WEIGHTS)
_ALLOWED = (*_REQUIRED, "README.md")
_MAX_TEXT_BYTES = 4 << 20
_COPY_BYTES = 4 << 20


class ArtifactStore:
    """A folder of adapters, each under the SHA-256 of its manifest, which holds the SHA-256 of each of its files.

    Args:
        root: The folder; it is made when the first adapter is added.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, folder: str | os.PathLike[str]) -> str:
        """Check a PEFT adapter folder and keep a copy of it.

        Args:
            folder: It holds `adapter_config.json`, `adapter_model.safetensors`, and nothing else but a `README.md`.

        Returns:
            The adapter's address; the same content has the same address and is kept once.

        Raises:
            ArtifactError: If a file is missing or not allowed, or its content is.
            RegistryWriteError: If the copy cannot be written.
        """
        source = Path(folder)
        names = _check_names(source)
        try:
            self.root.mkdir(exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix="incoming-", dir=self.root))
        except OSError as error:
            raise RegistryWriteError(f"cannot write in {self.root}: {error.strerror}; check its permissions") from error
        try:
            # What is checked is the copy: the source could change in the meantime.
            hashes = {name: _copy(source / name, staging / name) for name in names}
            _check_config(staging / CONFIG)
            _check_weights(staging / WEIGHTS)
            return self._keep(staging, hashes)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(staging), str(source))) from None
        except OSError as error:
            raise RegistryWriteError(f"cannot keep a copy of {source} in {self.root}: {error.strerror}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def path(self, sha256: str) -> Path:
        """The folder of an address, whether it is there or not.

        Args:
            sha256: As `add` returned it.

        Returns:
            `<root>/sha256/ab/abcdef…`, a folder that PEFT can load.

        Raises:
            ArtifactError: If the address is not a SHA-256.
        """
        if not is_sha256(sha256):
            raise ArtifactError(f"an address is the SHA-256 that ArtifactStore.add returned, got {sha256!r}")
        return self.root / "sha256" / sha256[:2] / sha256

    def remove(self, sha256: str) -> None:
        """Remove the files of an address, at once; one that is not there is no error.

        Args:
            sha256: As `add` returned it. That no other adapter needs it is for the caller to know.

        Raises:
            RegistryWriteError: If the folder cannot be written.
        """
        folder = self.path(sha256)
        if not folder.exists():
            return
        try:
            trash = Path(tempfile.mkdtemp(prefix="removed-", dir=self.root))
            folder.rename(trash / sha256)
            sync_folder(folder.parent)
            shutil.rmtree(trash)
        except OSError as error:
            raise RegistryWriteError(f"cannot remove {folder}: {error.strerror}; check its permissions") from error

    def verify(self, sha256: str) -> None:
        """Hash the files of an address again.

        Args:
            sha256: As `add` returned it.

        Raises:
            ArtifactError: If a file is missing, changed or was put there by another; the message names it.
        """
        folder = self.path(sha256)
        advice = "restore the folder from a copy, or discard the adapter"
        try:
            manifest = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise ArtifactError(f"the manifest of {folder} is gone; {advice}") from None
        if hashlib.sha256(manifest).hexdigest() != sha256:
            raise ArtifactError(f"{MANIFEST} in {folder} changed; {advice}")
        expected = json.loads(manifest)
        present = {path.name: path for path in folder.iterdir() if path.name != MANIFEST}
        wrong = [f"{name} is missing" for name in expected if name not in present]
        wrong += [f"{name} was added" for name in present if name not in expected]
        wrong += [
            f"{name} changed" for name, hash_ in expected.items() if name in present and _sha256(present[name]) != hash_
        ]
        if wrong:
            raise ArtifactError(f"in {folder}: {', '.join(sorted(wrong))}; {advice}")

    def _keep(self, staging: Path, hashes: dict[str, str]) -> str:
        manifest = json.dumps(hashes, sort_keys=True, indent=1).encode()
        write_atomically(staging / MANIFEST, manifest)
        for path in staging.iterdir():
            path.chmod(0o444)
        staging.chmod(0o755)
        sync_folder(staging)
        address = hashlib.sha256(manifest).hexdigest()
        folder = self.path(address)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            try:
                self.verify(address)
                return address
            except ArtifactError:  # the same content again heals a damaged copy
                self.remove(address)
        try:
            staging.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return address  # another program added the same content at this moment
        for parent in (folder.parent, folder.parent.parent, self.root, self.root.parent):
            sync_folder(parent)
        return address


def _check_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; give the folder that save_pretrained wrote the adapter to")
    names = sorted(path.name for path in folder.iterdir())
    if missing := [name for name in _REQUIRED if name not in names]:
        raise ArtifactError(f"{folder} lacks {', '.join(missing)}; give a PEFT adapter saved as safetensors")
    if other := [name for name in names if name not in _ALLOWED]:
        raise ArtifactError(
            f"an adapter folder holds {', '.join(_ALLOWED)} and nothing else; {folder} also holds {other[0]!r}; "
            "remove it or save the adapter to a folder of its own"
        )
    return names


def _open_regular(path: Path) -> io.BufferedReader:
    try:
        # Not through a link, and without waiting for whoever would write to a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read as a regular file: {error.strerror}; links are not followed"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{path} is not a regular file; an adapter holds nothing else")
    return os.fdopen(descriptor, "rb")


def _sha256(path: Path) -> str:
    with _open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with _open_regular(source) as reader, target.open("xb") as writer:
        if source.name != WEIGHTS and os.fstat(reader.fileno()).st_size > _MAX_TEXT_BYTES:
            raise ArtifactError(f"{source} has more than {_MAX_TEXT_BYTES} bytes; a configuration or README is smaller")
        while block := reader.read(_COPY_BYTES):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}; save the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ArtifactError(f"{path} does not describe a LoRA adapter (peft_type is not 'LORA')")
    ranks = config.get("rank_pattern") or {}
    for rank in (config.get("r"), *(ranks.values() if isinstance(ranks, dict) else [ranks])):
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise ArtifactError(f"a rank is a whole number from 1 to {MAX_RANK}, got {rank!r} in {path}")
    if config.get("auto_mapping"):
        raise ArtifactError(
            f"'auto_mapping' in {path} names code to import, which is refused; "
            "save the adapter with task_type='CAUSAL_LM', which needs none"
        )
    # PEFT writes this one default into every LoRA configuration.
    refused = {
        name: value for name, value in config.items() if name == "trust_remote_code" or name.startswith("megatron_")
    }
    for name, value in refused.items():
        if value and (name, value) != ("megatron_core", "megatron.core"):
            raise ArtifactError(f"{name!r} in {path} makes a loader run other code, which is refused; remove it")


def _check_weights(path: Path) -> None:
    header = read_safetensors_header(path)
    if not header.tensors:
        raise ArtifactError(f"{path} holds no tensor; save the adapter again")
    for name in header.tensors:
        for block in float32_blocks(path, header, name):
            if not np.isfinite(block).all():
                raise ArtifactError(f"tensor {name!r} in {path} holds NaN or Inf; train with a lower learning_rate")
