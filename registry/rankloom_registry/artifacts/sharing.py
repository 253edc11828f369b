"""Keeps a large tensor once, however many adapters hold it, and gives every one of them its bytes again.

Low-rank matrices are hardly ever equal; the embeddings and heads that some adapters bring are, and they are what is
large. So an artifact is the plain folder that PEFT wrote, unless a large tensor of it lies in another artifact already:
then its weights file is kept without those bytes, beside a list of where they are. An entry under `tensors/` says which
artifact holds a tensor, one under `lent/` that another borrows from it. Entries are hints: what they lead to is hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rankloom_registry.artifacts.parts import Parts, Piece
from rankloom_registry.artifacts.place import (
    BLOCK_BYTES,
    LOANS,
    MANIFEST,
    TENSORS,
    WEIGHTS,
    Place,
    folder_key,
    manifest_key,
)
from rankloom_registry.errors import ArtifactError
from rankloom_registry.files import write_atomically
from rankloom_registry.formats.safetensors import raw_blocks, read_safetensors_header
from rankloom_registry.names import is_sha256, validate_name

LEAST_BYTES = 1 << 20  # smaller tensors cost more to look up than to keep
REST = "adapter_model.rest"
PARTS = "adapter_model.parts.json"

_ADVICE = "restore the folder from a copy, or discard the adapter"


class Tensor(NamedTuple):
    """A large tensor of a weights file: the SHA-256 of its dtype, shape and bytes, and where these are."""

    sha256: str
    label: bytes
    at: int
    size: int


def large_tensors(weights: Path) -> list[Tensor]:
    """The tensors of a weights file that are worth keeping once, in the order of the file."""
    header = read_safetensors_header(weights)
    found = []
    for name, span in header.tensors.items():
        if span.end - span.start < LEAST_BYTES:
            continue
        label = f"{span.dtype}|{','.join(map(str, span.shape))}|".encode()
        digest = hashlib.sha256(label)
        for block in raw_blocks(weights, header, name):
            digest.update(block.data)
        found.append(Tensor(digest.hexdigest(), label, header.data_start + span.start, span.end - span.start))
    return found


class Sharing:
    """The artifacts of a place as whole files, however they are kept.

    Args:
        place: Where they lie.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def verify(self, address: str, copy_to: Path | None = None) -> None:
        """Hash the files of an artifact again, and write them into a folder while they are read.

        Args:
            address: The artifact.
            copy_to: An empty folder, or None to write nothing.

        Raises:
            ArtifactError: If a file is missing, changed or was put there by another; the message names it.
        """
        folder = folder_key(address)
        present = {Path(key).name for key in self._place.listing(folder)}
        manifest = self._manifest(address)
        expected: dict[str, str] = json.loads(manifest)
        for name in expected:
            validate_name(name)
        parts = self.parts(address)
        kept = set(expected) if parts is None else expected.keys() - {WEIGHTS} | {REST, PARTS}
        wrong = [f"{name} is missing" for name in kept - present]
        wrong += [f"{name} was added" for name in present - kept - {MANIFEST}]
        for name in sorted(expected):
            if (REST if name == WEIGHTS and parts else name) in present:
                blocks = self._weights(address, parts) if name == WEIGHTS else self._place.blocks(f"{folder}/{name}")
                if _hash(blocks, copy_to and copy_to / name) != expected[name]:
                    wrong.append(f"{name} changed")
        if wrong:
            raise ArtifactError(f"in {self._place}/{folder}: {', '.join(sorted(wrong))}; {_ADVICE}")
        if copy_to:
            (copy_to / MANIFEST).write_bytes(manifest)

    def parts(self, address: str) -> Parts | None:
        """How an artifact's weights file is kept; None if it is whole.

        Raises:
            ArtifactError: If that cannot be understood.
        """
        key = f"{folder_key(address)}/{PARTS}"
        text = self._place.read([key]).get(key)
        if text is None:
            return None
        try:
            return Parts.from_json(text)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{self._place}/{key} changed ({error}); {_ADVICE}") from error

    def borrow(self, staging: Path, address: str) -> list[Tensor]:
        """Leave out of a staged artifact what other artifacts hold.

        Args:
            staging: Its folder, which is changed.
            address: Its address.

        Returns:
            Its large tensors that no other artifact holds: what it can lend itself, once it is published.
        """
        weights = staging / WEIGHTS
        tensors = large_tensors(weights)
        entries = self._place.read({_tensor_key(tensor) for tensor in tensors})
        offers = {tensor: offer for tensor in tensors if (offer := _offer(tensor, entries, address))}
        # The loan is written before the lender is read: whoever removes the lender looks for loans when it is hidden,
        # so either the loan is seen there, or the lender is not seen here.
        loans = {_loan_key(piece.artifact, address): b"" for piece in offers.values()}
        self._place.write(loans)
        lenders = self._place.read({manifest_key(piece.artifact) for piece in offers.values()})
        pieces = {
            tensor: piece
            for tensor, piece in offers.items()
            if manifest_key(piece.artifact) in lenders and self._holds(piece, tensor)
        }
        needed = {_loan_key(piece.artifact, address) for piece in pieces.values()}
        self._place.delete(loans.keys() - needed)
        if pieces:
            parts = Parts(weights.stat().st_size, tuple(sorted(pieces.values())))
            _write_rest(weights, parts, staging / REST)
            write_atomically(staging / PARTS, parts.to_json())
            weights.unlink()
        return [tensor for tensor in tensors if tensor not in pieces]

    def offer(self, address: str, tensors: list[Tensor]) -> None:
        """Let other artifacts borrow the tensors of one that is published."""
        entries = {
            _tensor_key(tensor): json.dumps({"artifact": address, "offset": tensor.at}).encode() for tensor in tensors
        }
        self._place.write(entries, synced=False)

    def borrowers(self, address: str) -> set[str]:
        """The artifacts that borrow from one."""
        return {key.rpartition("/")[2] for key in self._place.listing(f"{LOANS}/{address}")}

    def end_loans(self, address: str, parts: Parts | None) -> None:
        """Forget the loans of an artifact that is gone."""
        pieces = parts.pieces if parts else ()
        self._place.delete({_loan_key(piece.artifact, address) for piece in pieces})

    def _manifest(self, address: str) -> bytes:
        key = manifest_key(address)
        manifest = self._place.read([key]).get(key)
        if manifest is None:
            raise ArtifactError(f"the manifest of {self._place}/{folder_key(address)} is gone; {_ADVICE}")
        if hashlib.sha256(manifest).hexdigest() != address:
            raise ArtifactError(f"{MANIFEST} in {self._place}/{folder_key(address)} changed; {_ADVICE}")
        return manifest

    def _weights(self, address: str, parts: Parts | None) -> Iterator[bytes]:
        folder = folder_key(address)
        if parts is None:
            yield from self._place.blocks(f"{folder}/{WEIGHTS}")
            return
        for start, size, piece in parts.gaps():
            if size:
                yield from self._place.blocks(f"{folder}/{REST}", start, size)
            if piece:
                yield from self._piece(piece)

    def _piece(self, piece: Piece) -> Iterator[bytes]:
        lender = self.parts(piece.artifact)
        name, offset = (
            (WEIGHTS, piece.offset) if lender is None else (REST, lender.within_rest(piece.offset, piece.size))
        )
        if offset is None:
            raise ArtifactError(f"{self._place}/{folder_key(piece.artifact)} no longer holds what it lent; {_ADVICE}")
        return self._place.blocks(f"{folder_key(piece.artifact)}/{name}", offset, piece.size)

    def _holds(self, piece: Piece, tensor: Tensor) -> bool:
        digest = hashlib.sha256(tensor.label)
        try:
            for block in self._piece(piece):
                digest.update(block)
        except ArtifactError:
            return False  # what an entry leads to may be removed or damaged; the tensor is then kept once more
        return digest.hexdigest() == tensor.sha256


class Loan(NamedTuple):
    """Which artifact lends a tensor to which."""

    lender: str
    borrower: str


def loan(key: str) -> Loan:
    """The loan that a key under `lent/` stands for."""
    _, lender, borrower = key.split("/", 2)
    return Loan(lender, borrower)


def lender_of(entry: bytes) -> str | None:
    """The artifact that an entry under `tensors/` names, or None if it is torn."""
    try:
        address = json.loads(entry)["artifact"]
    except (ValueError, KeyError, TypeError):
        return None
    return address if isinstance(address, str) and is_sha256(address) else None


def _tensor_key(tensor: Tensor) -> str:
    return f"{TENSORS}/{tensor.sha256[:2]}/{tensor.sha256}"


def _loan_key(lender: str, borrower: str) -> str:
    return f"{LOANS}/{lender}/{borrower}"


def _offer(tensor: Tensor, entries: Mapping[str, bytes], address: str) -> Piece | None:
    entry = entries.get(_tensor_key(tensor), b"")
    lender = lender_of(entry)
    if lender is None or lender == address:
        return None
    offset = json.loads(entry).get("offset")
    return Piece(tensor.at, tensor.size, lender, offset) if type(offset) is int and offset >= 0 else None


def _write_rest(weights: Path, parts: Parts, target: Path) -> None:
    with weights.open("rb") as reader, target.open("xb") as writer:
        position = 0
        for _, size, piece in parts.gaps():
            reader.seek(position)
            for start in range(0, size, BLOCK_BYTES):
                writer.write(reader.read(min(BLOCK_BYTES, size - start)))
            position += size + (piece.size if piece else 0)
        writer.flush()
        os.fsync(writer.fileno())


def _hash(blocks: Iterator[bytes], target: Path | None) -> str:
    digest = hashlib.sha256()
    if target is None:
        for block in blocks:
            digest.update(block)
        return digest.hexdigest()
    with target.open("xb") as writer:
        for block in blocks:
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()
