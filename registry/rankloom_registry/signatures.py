"""Keeps the signatures of adapters beside the registry, as an artifact holds only what its address counts."""

from __future__ import annotations

from pathlib import Path

from rankloom_registry.artifacts.local import LocalPlace
from rankloom_registry.artifacts.place import Stored
from rankloom_registry.errors import ArtifactError, RegistryWriteError
from rankloom_registry.files import sync_folder
from rankloom_registry.names import is_sha256
from rankloom_registry.signing import Signer


class Signatures:
    """The signatures of a registry's artifacts, one an address; the files are beside it even where those are at a URL.

    Args:
        registry: The resolved path of the registry file.

    Attributes:
        folder: Where they are; it is made with the first.
    """

    def __init__(self, registry: Path) -> None:
        self.folder = registry.with_name(registry.name.removesuffix(".duckdb") + ".signatures")

    def path(self, address: str) -> Path:
        """The file of an artifact's signature, whether it is there or not.

        Raises:
            ArtifactError: If the address is not a SHA-256.
        """
        if not is_sha256(address):
            raise ArtifactError(f"an address is the SHA-256 that ArtifactStore.add returned, got {address!r}")
        return self.folder / f"{address}.sig"

    def sign(self, address: str, files: Path, signer: Signer) -> Path:
        """Sign an artifact, in place of whoever signed it before.

        Args:
            address: Its address.
            files: Its folder, as it was checked out.
            signer: Who signs.

        Returns:
            The file of the signature.

        Raises:
            RegistryWriteError: If there can be no folder of signatures.
            SignatureError: If it cannot be signed.
        """
        target = self.path(address)
        try:
            self.folder.mkdir(exist_ok=True)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise RegistryWriteError(f"cannot write in {self.folder}: {error.strerror}; check permissions") from error
        return signer.sign(files, signature=target)

    def files(self) -> dict[Path, Stored]:
        """All that is there; the stem of a name is an address, unless it is a file that somebody did not finish."""
        return {self.folder / name: stored for name, stored in LocalPlace(self.folder).listing("").items()}
