"""Which files of an unfinished merge are whole, as a file tells that outlives a kill."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from rankloom.outputs import file_sha256
from rankloom_registry.files import write_atomically


class Journal:
    """Lines of SHA-256 and name, as `sha256sum` prints them."""

    def __init__(self, path: Path) -> None:
        """Open a journal; a new one is empty."""
        self._path = path

    def kept(self, folder: Path, names: Collection[str]) -> dict[str, str]:
        """Find out what an earlier merge finished, and remove everything else.

        Hashing costs less than half of making a file again, and the report may then vouch for what lies there.

        Args:
            folder: Where the files lie.
            names: The files that there will be, by their paths in the folder.

        Returns:
            The SHA-256 of each file that is there and still what the journal says.
        """
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        # A kill may have torn the last line; each line before it was synced whole.
        noted = {name: digest for digest, _, name in (line.partition("  ") for line in text.split("\n")[:-1])}
        kept = {}
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_dir() and not path.is_symlink():
                continue
            if name in names and name in noted and file_sha256(path) == noted[name]:
                kept[name] = noted[name]
            else:
                path.unlink()
        write_atomically(self._path, "".join(f"{digest}  {name}\n" for name, digest in kept.items()).encode())
        return kept

    def add(self, name: str, sha256: str) -> None:
        """Note that a file is whole and on the disk."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{sha256}  {name}\n")
            file.flush()
            os.fsync(file.fileno())
