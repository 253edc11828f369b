"""Remembers the leaves of a weight file for as long as the file stays as it was."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from rankloom_registry.files import write_atomically

_VERSION = "2"  # raise it when a leaf is computed in another way
_MAX_FILES = 512
# A file that changed a moment ago can change again within the same tick of the file system's clock.
SETTLED_NS = 2_000_000_000


class LeafCache:
    """Leaves by what `stat` says of a file: device, inode, size, and both times to the nanosecond.

    Args:
        path: Where the cache lies.
        entries: What it holds.
    """

    def __init__(self, path: Path, entries: dict[str, dict[str, str]]) -> None:
        self._path = path
        self._entries = entries
        self._changed = False

    @classmethod
    def load(cls) -> LeafCache:
        """Load the cache of this user."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(home) / "rankloom" / "fingerprints.json"
        try:
            data = json.loads(path.read_bytes())
            entries = dict(data["files"]) if data["version"] == _VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):
            entries = {}  # it only saves time: without it, or with a damaged one, the weights are hashed
        return cls(path, entries)

    def get(self, status: os.stat_result) -> dict[str, str] | None:
        """The leaves of a file, if it is as it was.

        Args:
            status: The file's, from `stat`.

        Returns:
            Tensor name to leaf, or None.
        """
        return self._entries.get(_key(status))

    def put(self, before: os.stat_result, after: os.stat_result, leaves: dict[str, str]) -> None:
        """Remember the leaves of a file, unless it changed just before they were made, or meanwhile.

        Args:
            before: What `stat` said before the file was hashed.
            after: What it said afterwards.
            leaves: Tensor name to leaf.
        """
        if _key(before) == _key(after) and time.time_ns() - before.st_ctime_ns > SETTLED_NS:
            self._entries.pop(_key(before), None)  # what is put last is kept longest
            self._entries[_key(before)] = leaves
            self._changed = True

    def save(self) -> None:
        """Write the cache if it changed."""
        if not self._changed:
            return
        newest = dict(list(self._entries.items())[-_MAX_FILES:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps({"version": _VERSION, "files": newest}).encode())
        except OSError:
            return  # a home that cannot be written costs the time again, and nothing else


def _key(status: os.stat_result) -> str:
    return ":".join(
        str(part) for part in (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    )
