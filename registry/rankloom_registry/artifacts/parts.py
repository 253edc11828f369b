"""Which bytes of a weights file lie in other artifacts, and which in a file of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from rankloom_registry.names import is_sha256


class Piece(NamedTuple):
    """Bytes of a weights file, from `at`, that lie in another artifact's weights file, from `offset`."""

    at: int
    size: int
    artifact: str
    offset: int


@dataclass(frozen=True, slots=True)
class Parts:
    """A weights file of `size` bytes that is kept without its `pieces`, which are in order and do not overlap."""

    size: int
    pieces: tuple[Piece, ...]

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what `to_json` wrote, and trust none of it.

        Raises:
            ValueError, KeyError, TypeError, RecursionError: If it is no such list.
        """
        data = json.loads(text)
        pieces = tuple(Piece(**piece) for piece in data["pieces"])
        position = 0
        for piece in pieces:
            if not is_sha256(piece.artifact) or piece.at < position or piece.size < 1 or piece.offset < 0:
                raise ValueError(f"{piece} is no piece of it")
            position = piece.at + piece.size
        if data["size"] < position:
            raise ValueError("its pieces are larger than the file")
        return cls(int(data["size"]), pieces)

    def to_json(self) -> bytes:
        """The list as a file holds it."""
        content = {"size": self.size, "pieces": [piece._asdict() for piece in self.pieces]}
        return json.dumps(content, indent=1).encode()

    def gaps(self) -> Iterator[tuple[int, int, Piece | None]]:
        """What is kept before each piece, and then the piece: where it begins in the rest, how much, and the piece."""
        position = kept = 0
        for piece in self.pieces:
            yield kept, piece.at - position, piece
            kept += piece.at - position
            position = piece.at + piece.size
        yield kept, self.size - position, None

    def within_rest(self, start: int, size: int) -> int | None:
        """Where bytes of the weights file lie in the rest; None if they were lent themselves."""
        before = [piece for piece in self.pieces if piece.at < start + size]
        if before and before[-1].at + before[-1].size > start:
            return None
        return start - sum(piece.size for piece in before)
