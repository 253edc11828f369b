"""Takes turns on one registry file, between the threads of this process and between processes.

DuckDB allows one writer process per file and none beside it, and says so by failing at once; an advisory `flock` on a
neighbouring file lets everyone wait their turn, for a bounded time.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rankloom_registry.errors import RegistryBusyError, RegistryWriteError

_POLL_S = 0.005

# DuckDB's own lock is POSIX fcntl, which a process loses as soon as it closes any descriptor of the file: two threads
# must not have the same file attached at once, not even to read.
_threads: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
_threads_guard = threading.Lock()
os.register_at_fork(after_in_child=_threads.clear)  # the thread that would release a lock is not there


def lock_path(registry: Path) -> Path:
    """The file beside the registry on which everyone takes turns."""
    return registry.with_name(registry.name + ".lock")


@contextmanager
def turn(registry: Path, *, write: bool, timeout_s: float) -> Iterator[None]:
    """Hold the registry for the body: alone to write, together with other processes that read.

    Args:
        registry: The resolved path of the registry file.
        write: Whether the body changes the file.
        timeout_s: The longest wait, in seconds.

    Raises:
        RegistryBusyError: If the turn did not come in time; the message names the holder.
        RegistryWriteError: If the lock file cannot be made.
    """
    deadline = time.monotonic() + timeout_s
    with _threads_guard:
        thread_lock = _threads[registry]
    if not thread_lock.acquire(timeout=timeout_s):
        raise RegistryBusyError(
            f"another thread of this process kept {registry} for more than {timeout_s:g} s; try again"
        )
    try:
        descriptor = _open(lock_path(registry), write)
        if descriptor is None:
            yield
            return
        try:
            _flock(descriptor, registry, write, deadline, timeout_s)
            if write:
                _sign(descriptor)
            try:
                yield
            finally:
                if write:
                    os.ftruncate(descriptor, 0)
        finally:
            # Closing is not enough: a process that was forked meanwhile shares the descriptor, and with it the lock.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)
    finally:
        thread_lock.release()


def _open(path: Path, write: bool) -> int | None:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if write or error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RegistryWriteError(
                f"cannot make the lock file {path}: {error.strerror}; give a registry in a folder you can write"
            ) from error
    try:
        return os.open(path, flags | os.O_RDONLY)
    except FileNotFoundError:
        return None  # a read-only place where nobody has ever taken a turn: there is no writer to wait for


def _flock(descriptor: int, registry: Path, write: bool, deadline: float, timeout_s: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise RegistryBusyError(
                    f"{registry} was kept by {_holder(descriptor)} for more than {timeout_s:g} s; "
                    "wait until it is done, or end it"
                ) from None
        time.sleep(_POLL_S)


def _sign(descriptor: int) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:200]}
    with suppress(OSError):  # a courtesy to those who wait, which a full disk may deny
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} ({holder['command']})"
    except (ValueError, KeyError, TypeError):  # writers sign and readers do not
        return "other processes that read it"
