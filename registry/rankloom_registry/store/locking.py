"""Takes turns on one registry file, between the threads of this process and between processes.

DuckDB allows one writer process per file and none beside it, and says so by failing at once; an advisory `flock` on a
neighbouring file lets everyone wait their turn, for a bounded time. Who keeps the file for long, as a search does, says
in the lock file at which socket it takes orders meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rankloom_registry.errors import RegistryBusyError, RegistryWriteError

_POLL_S = 0.002
_THREAD_POLL_S = 0.02
_FLOCK = struct.Struct("hhqqi4x")  # the C structure of that name

# DuckDB's own lock is POSIX fcntl, which a process loses as soon as it closes any descriptor of the file: two threads
# must not have the same file attached at once, not even to read.
_threads: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
_threads_guard = threading.Lock()
_doors: dict[Path, str] = {}  # of the owners in this process: registry -> socket
os.register_at_fork(after_in_child=_threads.clear)  # the thread that would release a lock is not there


class OwnedError(RegistryBusyError):
    """The registry has an owner, who takes orders at `socket`; never seen by a user where somebody answers there."""

    def __init__(self, registry: Path, socket: str, holder: str) -> None:
        super().__init__(f"{registry} is kept by {holder} while it searches; wait until that is over, or end it")
        self.socket = socket

    def __reduce__(self) -> tuple[type[RegistryBusyError], tuple[str]]:
        return RegistryBusyError, (str(self),)


class Turn:
    """The turn that somebody has."""

    def __init__(self, registry: Path, descriptor: int | None) -> None:
        self._registry = registry
        self._descriptor = descriptor

    def serve(self, socket: str) -> None:
        """Say that orders are taken at a Unix socket for as long as the turn lasts.

        Raises:
            RegistryWriteError: If that cannot be written to the lock file.
        """
        assert self._descriptor is not None, "an owner writes"
        try:
            _sign(self._descriptor, socket=socket)
        except OSError as error:
            path = lock_path(self._registry)
            raise RegistryWriteError(f"cannot write {path}: {error.strerror}; make room on the disk") from error
        _doors[self._registry] = socket


def lock_path(registry: Path) -> Path:
    """The file beside the registry on which everyone takes turns."""
    return registry.with_name(registry.name + ".lock")


@contextmanager
def turn(registry: Path, *, write: bool, timeout_s: float) -> Iterator[Turn]:
    """Hold the registry for the body: alone to write, together with other processes that read.

    Args:
        registry: The resolved path of the registry file.
        write: Whether the body changes the file.
        timeout_s: The longest wait, in seconds.

    Raises:
        OwnedError: If an owner has it: that is said at once, as it may have it for hours.
        RegistryBusyError: If the turn did not come in time; the message names the holder.
        RegistryWriteError: If the lock file cannot be made.
    """
    deadline = time.monotonic() + timeout_s
    with _threads_guard:
        thread_lock = _threads[registry]
    _wait_for_threads(thread_lock, registry, deadline, timeout_s)
    try:
        descriptor = _open(lock_path(registry), write)
        if descriptor is None:
            yield Turn(registry, None)
            return
        try:
            _flock(descriptor, registry, write, deadline, timeout_s)
            if write:
                with suppress(OSError):  # a courtesy to those who wait, which a full disk may deny
                    _sign(descriptor)
            try:
                yield Turn(registry, descriptor)
            finally:
                if write:
                    _doors.pop(registry, None)
                    os.ftruncate(descriptor, 0)
        finally:
            # Closing is not enough: a process that was forked meanwhile shares the descriptor, and with it the lock.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)
    finally:
        thread_lock.release()


def _wait_for_threads(lock: threading.Lock, registry: Path, deadline: float, timeout_s: float) -> None:
    while True:
        if door := _doors.get(registry):
            raise OwnedError(registry, door, "this process")
        if lock.acquire(timeout=max(0.0, min(_THREAD_POLL_S, deadline - time.monotonic()))):
            return
        if time.monotonic() >= deadline:
            raise RegistryBusyError(
                f"another thread of this process kept {registry} for more than {timeout_s:g} s; try again"
            )


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
    ticket = _queue_up(descriptor)
    try:
        while True:
            if _is_first(descriptor, ticket):
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                    return
            signature = _signature(descriptor)
            if "socket" in signature:
                # Perhaps of an owner that was killed: whoever finds nobody at the socket asks again.
                raise OwnedError(registry, str(signature["socket"]), _holder(signature))
            if time.monotonic() >= deadline:
                raise RegistryBusyError(
                    f"{registry} was kept by {_holder(signature)} for more than {timeout_s:g} s; "
                    "wait until it is done, or end it"
                )
            time.sleep(_POLL_S)
    finally:
        _leave_queue(descriptor, ticket)


# A flock goes to whoever asks first once it is free, which is who just gave it back. So those who wait lock a byte of
# the same file as well, at the position that is the time; first is who finds no locked byte before. Nobody depends on
# it, and a process that dies leaves the queue.


def _queue_up(descriptor: int) -> int | None:
    ticket = time.monotonic_ns()
    try:
        _lock_bytes(descriptor, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, ticket, 1)
    except (AttributeError, OSError):  # not on this system, or not in this file system
        return None
    return ticket


def _is_first(descriptor: int, ticket: int | None) -> bool:
    return ticket is None or _lock_bytes(descriptor, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, 0, ticket) == fcntl.F_UNLCK


def _leave_queue(descriptor: int, ticket: int | None) -> None:
    if ticket is not None:
        _lock_bytes(descriptor, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, ticket, 1)


def _lock_bytes(descriptor: int, command: int, kind: int, start: int, length: int) -> int:
    found: tuple[int, ...] = _FLOCK.unpack(
        fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    )
    return found[0]


def _sign(descriptor: int, **more: str) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:200]} | more
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _signature(descriptor: int) -> dict[str, Any]:
    try:
        signature = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # writers sign and readers do not
        return {}
    return signature if isinstance(signature, dict) else {}


def _holder(signature: dict[str, Any]) -> str:
    if {"pid", "host", "command"} <= signature.keys():
        return f"process {signature['pid']} on {signature['host']} ({signature['command']})"
    return "other processes that read it"
