"""Writes files block by block, while the next block is computed: one thread hashes and writes, another one syncs."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

# Blocks under way: enough that a sync of the disk does not stop the arithmetic at once.
_BLOCKS = 8
# Dirty bytes after which the disk is told to begin, so that little is left to do for the sync at a file's end.
_FLUSH_BYTES = 32 << 20


class Pen:
    """Lends buffers, and writes them into files in the order in which they come back."""

    def __init__(self, folder: Path, finished: Callable[[str, str], None], written: Callable[[int], None]) -> None:
        """Make a pen.

        Args:
            folder: Where the files go.
            finished: Called with name and SHA-256 of each file once it is on the disk, from another thread.
            written: Called with the size of each block as it is handed over.
        """
        self._folder = folder
        self._finished = finished
        self._written = written
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(_BLOCKS):
            self._free.put(bytearray())
        self._lent: dict[int, bytearray] = {}
        self._writer = ThreadPoolExecutor(1, "merge-writer")
        self._syncer = ThreadPoolExecutor(1, "merge-syncer")
        self._under_way: deque[Future[Any]] = deque()
        self._syncs: list[Future[None]] = []
        self._files: list[_File] = []
        self._file: _File | None = None

    def __enter__(self) -> Pen:
        """Return the pen."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Wait for what is under way; what is not begun is dropped."""
        for pool in (self._writer, self._syncer):
            pool.shutdown(wait=True, cancel_futures=True)
        for file in self._files:  # those that were not synced are still open
            file.close()

    def open(self, name: str) -> None:
        """Begin a file, by its path in the folder."""
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        self._file = _File(name, path)
        self._files.append(self._file)

    def borrow(self, size: int) -> memoryview:
        """Return a buffer to fill, once one is free.

        Raises:
            OSError: A block could not be written.
        """
        self._raise_failures()
        buffer = self._free.get()
        if len(buffer) < size:
            buffer = bytearray(size)
        view = memoryview(buffer)[:size]
        self._lent[id(view)] = buffer
        return view

    def write(self, view: memoryview) -> None:
        """Hand a borrowed buffer over to be written."""
        file, buffer = self._file, self._lent.pop(id(view))
        assert file is not None, "no file is open"

        def write() -> None:
            try:
                file.write(view)
            finally:
                self._free.put(buffer)

        size = len(view)
        self._under_way.append(self._writer.submit(write))
        self._written(size)

    def close(self) -> None:
        """End the file: it will be made durable, and then announced."""
        file = self._file
        assert file is not None, "no file is open"
        self._file = None

        def sync() -> None:
            file.sync()
            self._finished(file.name, file.digest.hexdigest())

        # Behind the last block's turn, so that the file is whole when it is synced.
        self._under_way.append(self._writer.submit(lambda: self._syncs.append(self._syncer.submit(sync))))

    def join(self) -> None:
        """Wait until every file is on the disk.

        Raises:
            OSError: Something could not be written.
        """
        for future in self._under_way:
            future.result()
        for sync in self._syncs:
            sync.result()

    def _raise_failures(self) -> None:
        while self._under_way and self._under_way[0].done():
            self._under_way.popleft().result()


class _File:
    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.digest = hashlib.sha256()
        self._file = path.open("wb", buffering=0)
        self._size = self._flushed = 0

    def write(self, view: memoryview) -> None:
        self.digest.update(view)
        done = 0
        while done < len(view):
            done += self._file.write(view[done:])
        self._size += done
        if self._size - self._flushed >= _FLUSH_BYTES:
            # Starts writing what is dirty, and does not wait for it; only pages that are clean are dropped.
            os.posix_fadvise(self._file.fileno(), self._flushed, self._size - self._flushed, os.POSIX_FADV_DONTNEED)
            self._flushed = self._size

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        self._file.close()
