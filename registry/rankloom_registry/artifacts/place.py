"""Where the files of adapters lie: what a local folder and a URL have in common, and the names in them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from rankloom_registry.errors import ArtifactError
from rankloom_registry.names import is_sha256

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MANIFEST = "manifest.json"

ARTIFACTS = "sha256"
TENSORS = "tensors"
LOANS = "lent"

BLOCK_BYTES = 4 << 20


class Stored(NamedTuple):
    """The size of what is stored, in bytes, and when it was written, in seconds since 1970."""

    size: int
    modified: float


class Place(Protocol):
    """Artifacts, each a few files under its address, and small entries about them; a key is a path with slashes."""

    def staging(self) -> Path:
        """Make an empty local folder in which an artifact is put together."""

    def publish(self, staging: Path, address: str, *, replace: bool = False) -> None:
        """Keep a folder under an address, whole or not at all; one that is there stays, unless `replace`."""

    def withdraw(self, address: str, *, spare: Callable[[float], bool]) -> bool:
        """Take an artifact away, unless `spare`, asked with the time it was last wanted, says no; also when it is gone.

        `spare` is asked again when nobody can find the artifact any more, and it is put back if the answer is yes then:
        whoever says that an artifact is wanted and finds it afterwards can rely on it.

        Returns:
            Whether the artifact is gone.
        """

    def touch(self, address: str) -> bool:
        """Say that an artifact is wanted now; False if it is not there."""

    def blocks(self, key: str, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Read a file, or `size` bytes of it, a few MiB at a time.

        Raises:
            ArtifactError: If it is not there, or is no regular file.
        """

    def read(self, keys: Collection[str]) -> dict[str, bytes]:
        """Read small files; those that are not there are left out."""

    def write(self, entries: Mapping[str, bytes], *, synced: bool = True) -> None:
        """Write small files, each whole or not at all; `synced` ones last through a power cut."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files; one that is not there is no error."""

    def listing(self, prefix: str) -> dict[str, Stored]:
        """All files below a folder, by key."""

    def leftovers(self) -> dict[Path, Stored]:
        """Local folders of work that somebody did not finish, or is doing now."""


def folder_key(address: str) -> str:
    """The folder of an artifact.

    Raises:
        ArtifactError: If the address is not a SHA-256.
    """
    if not is_sha256(address):
        raise ArtifactError(f"an address is the SHA-256 that ArtifactStore.add returned, got {address!r}")
    return f"{ARTIFACTS}/{address[:2]}/{address}"


def manifest_key(address: str) -> str:
    """The manifest of an artifact, without which it does not exist."""
    return f"{folder_key(address)}/{MANIFEST}"
