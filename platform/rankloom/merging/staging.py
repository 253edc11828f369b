"""The folder in which an output grows, hidden beside it: finished files in it outlive an interruption."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rankloom.errors import MergeError
from rankloom_registry.files import sync_folder


class Staging:
    """An unfinished output: its folder, and a journal of the files in it that are whole.

    Attributes:
        folder: Where the output's files go; it takes the output's name at the end.
    """

    def __init__(self, output: Path, home: Path, journal: IO[str], plan: str) -> None:
        """Take up what an earlier merge of the same plan left; what one of another plan left is removed."""
        self.folder = home / "model"
        self._output = output
        self._home = home
        self._journal = journal
        self._digests: dict[str, str] = {}
        # A kill may have torn the last line; each line before it was synced whole.
        lines = journal.read().split("\n")[:-1]
        if lines and lines[0] == plan and self.folder.is_dir():
            self._digests = {entry["file"]: entry["sha256"] for entry in map(json.loads, lines[1:])}
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            lines = [plan]
        journal.seek(0)
        journal.truncate()
        self._append("".join(f"{line}\n" for line in lines))

    def kept(self, names: set[str]) -> dict[str, str]:
        """Return the SHA-256 of each file that an earlier merge finished, once it is hashed again; remove all others.

        Hashing costs less than half of making a file again, and the report may then vouch for what lies there.
        """
        kept = {}
        for path in sorted(self.folder.iterdir()):
            expected = self._digests.get(path.name) if path.name in names else None
            if expected is not None and file_sha256(path) == expected:
                kept[path.name] = expected
            else:
                path.unlink()
        return kept

    def finished(self, name: str, sha256: str) -> None:
        """Note that a file is whole and on the disk."""
        sync_folder(self.folder)
        self._append(json.dumps({"file": name, "sha256": sha256}) + "\n")

    def publish(self) -> None:
        """Give the folder its name."""
        sync_folder(self.folder)
        self.folder.rename(self._output)
        sync_folder(self._output.parent)
        self.remove()

    def remove(self) -> None:
        """Remove the folder, and the journal with it."""
        shutil.rmtree(self._home, ignore_errors=True)

    def _append(self, text: str) -> None:
        self._journal.write(text)
        self._journal.flush()
        os.fsync(self._journal.fileno())


@contextmanager
def staged(output: Path, plan: str) -> Iterator[Staging]:
    """Open the staging of an output, and close it for every other process.

    Args:
        output: The folder to be.
        plan: Says what is merged with what; a single line.

    Yields:
        The staging; a merge that is refused or fails removes it, one that is interrupted or killed leaves it.

    Raises:
        MergeError: Another merge writes to this output.
    """
    home = _home(output)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "journal").open("a+", encoding="utf-8") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = os.fstat(journal.fileno()).st_nlink > 0  # no link is left if another merge ended just now
        except BlockingIOError:
            alone = False
        if not alone:
            raise MergeError(
                f"one merge at a time may write to {output}, but another one does; wait for it, or name another output"
            )
        journal.seek(0)
        staging = Staging(output, home, journal, plan)
        try:
            yield staging
        # Planned: whatever fails leaves nothing behind, and is raised again; Ctrl-C and a kill leave it to go on from.
        except Exception:
            staging.remove()
            raise


def unfinished_bytes(output: Path) -> int:
    """Return how much of an output an earlier merge may have left for the next one."""
    return sum(path.stat().st_size for path in (_home(output) / "model").glob("*"))


def _home(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
