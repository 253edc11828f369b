"""Keeps the files of adapters in folders named by their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rankloom_registry.artifacts.checks import check_files, check_folder, size_limit
from rankloom_registry.artifacts.local import LocalPlace, open_regular
from rankloom_registry.artifacts.place import BLOCK_BYTES, MANIFEST, Place, folder_key
from rankloom_registry.artifacts.remote import RemotePlace
from rankloom_registry.artifacts.sharing import Sharing
from rankloom_registry.errors import ArtifactError, RegistryError, RegistryWriteError
from rankloom_registry.files import write_atomically


class ArtifactStore:
    """Adapters, each under the SHA-256 of its manifest, which holds the SHA-256 of each of its files.

    Args:
        root: A folder, which is made when the first adapter is added, or a URL that fsspec can reach, such as
            `s3://bucket/prefix`; `file://` is a folder. No two registries should share one: `gc` removes what its
            registry does not know.

    Attributes:
        root: The folder or URL.
        place: How its files are reached.
        cache: Where `checkout` puts what PEFT cannot load from where it lies.
    """

    def __init__(self, root: Path | str) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.root = _local(root)
        self.cache = LocalPlace(Path(home) / "rankloom" / "artifacts")
        self.place: Place = LocalPlace(self.root) if isinstance(self.root, Path) else RemotePlace(self.root, self.cache)
        self._sharing = Sharing(self.place)

    def add(self, folder: str | os.PathLike[str], *, allow: Collection[str] = ()) -> str:
        """Check a PEFT adapter folder and keep a copy of it.

        Args:
            folder: It holds `adapter_config.json`, `adapter_model.safetensors`, and nothing else but a `README.md`.
            allow: What `check_folder` refuses unless it is named here.

        Returns:
            The adapter's address; the same content has the same address and is kept once.

        Raises:
            ArtifactError: If a file is missing or not allowed, or its content is.
            RegistryWriteError: If the copy cannot be written.
            ArtifactUnreachableError: If the store is at a URL that cannot be reached.
        """
        source = Path(folder)
        names = check_files(source, allow=allow)
        staging = self.place.staging()
        try:
            # What is checked is the copy: the source could change in the meantime.
            hashes = {name: _copy(source / name, staging / name) for name in names}
            check_folder(staging, allow=allow)
            return self._keep(staging, hashes)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(staging), str(source))) from None
        except RegistryError:
            raise
        except OSError as error:
            raise RegistryWriteError(f"cannot keep a copy of {source} in {self.root}: {error.strerror}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def path(self, sha256: str) -> Path:
        """The local folder of an address, whether it is there or not.

        Args:
            sha256: As `add` returned it.

        Returns:
            `<root>/sha256/ab/abcdef…`; for a store at a URL the folder that `checkout` makes.

        Raises:
            ArtifactError: If the address is not a SHA-256.
        """
        return (self.place if isinstance(self.place, LocalPlace) else self.cache).folder(sha256)

    def checkout(self, sha256: str) -> Path:
        """A folder that PEFT can load, every file of it verified just now.

        Args:
            sha256: As `add` returned it.

        Returns:
            The folder of a local store; if the store is at a URL, or keeps a tensor of it with another adapter, a copy
            in `$XDG_CACHE_HOME/rankloom/artifacts`, which is made once. It is for reading.

        Raises:
            ArtifactError: If a file is missing or changed.
            RegistryWriteError: If the copy cannot be written.
            ArtifactUnreachableError: If the store is at a URL that cannot be reached.
        """
        if isinstance(self.place, LocalPlace) and self._sharing.parts(sha256) is None:
            self._sharing.verify(sha256)
            return self.place.folder(sha256)
        cached, damaged = Sharing(self.cache), False
        if self.cache.listing(folder_key(sha256)):
            try:
                cached.verify(sha256)
                self.cache.touch(sha256)
                return self.cache.folder(sha256)
            except ArtifactError:  # it is made anew
                damaged = True
        staging = self.cache.staging()
        try:
            self._sharing.verify(sha256, copy_to=staging)
            self.cache.publish(staging, sha256, replace=damaged)
        except RegistryError:
            raise
        except OSError as error:
            raise RegistryWriteError(f"cannot check {sha256} out to {self.cache.root}: {error.strerror}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return self.cache.folder(sha256)

    def remove(self, sha256: str, *, unless_wanted_since: float = float("inf")) -> bool:
        """Remove the files of an address, at once; one that is not there is no error.

        Args:
            sha256: As `add` returned it. That no other adapter needs it is for the caller to know.
            unless_wanted_since: Seconds since 1970; it stays if it was added, or added again, since then.

        Returns:
            Whether it is gone: while another adapter's files borrow a tensor from it, it stays, and `gc` removes it
            some time later.

        Raises:
            ArtifactError: If the address is not a SHA-256.
            RegistryWriteError: If the folder cannot be written.
            ArtifactUnreachableError: If the store is at a URL that cannot be reached.
        """
        try:
            parts = self._sharing.parts(sha256)
        except ArtifactError:  # its loans stay until gc finds that nobody has them
            folder_key(sha256)
            parts = None
        gone = self.place.withdraw(
            sha256, spare=lambda wanted: wanted > unless_wanted_since or bool(self._sharing.borrowers(sha256))
        )
        if gone:
            self._sharing.end_loans(sha256, parts)
        return gone

    def verify(self, sha256: str) -> None:
        """Hash the files of an address again.

        Args:
            sha256: As `add` returned it.

        Raises:
            ArtifactError: If a file is missing, changed or was put there by another; the message names it.
            ArtifactUnreachableError: If the store is at a URL that cannot be reached.
        """
        self._sharing.verify(sha256)

    def _keep(self, staging: Path, hashes: dict[str, str]) -> str:
        manifest = json.dumps(hashes, sort_keys=True, indent=1).encode()
        address = hashlib.sha256(manifest).hexdigest()
        damaged = bool(self.place.listing(folder_key(address)))
        if damaged:
            try:
                self.verify(address)
                if self.place.touch(address):
                    return address
            except ArtifactError:  # the same content again heals a damaged copy
                pass
        write_atomically(staging / MANIFEST, manifest)
        # What others borrow from is kept whole.
        lends = damaged and self._sharing.borrowers(address)
        tensors = [] if lends else self._sharing.borrow(staging, address)
        self.place.publish(staging, address, replace=damaged)
        self._sharing.offer(address, tensors)
        return address


def _local(root: Path | str) -> Path | str:
    if isinstance(root, Path) or "://" not in root:
        return Path(root)
    url = urlsplit(root)
    if url.scheme not in ("file", "local"):
        return root
    if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
        raise ArtifactError(f"a file:// URL has an absolute path, as in file:///srv/artifacts; got {root!r}")
    return Path(unquote(url.path))


def _copy(source: Path, target: Path) -> str:
    digest, left = hashlib.sha256(), size_limit(source.name)
    with open_regular(source) as reader, target.open("xb") as writer:
        while block := reader.read(BLOCK_BYTES):
            left -= len(block)
            if left < 0:
                raise ArtifactError(f"{source} grew while it was read; give a folder that nobody writes to")
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()
