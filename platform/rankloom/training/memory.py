"""How much memory there is, and how much of it a piece of work takes at its peak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from rankloom.training.trial import peak_memory_bytes, release_memory

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int:
    """Return the memory that could still be taken: on the GPU, or of the machine within its container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(psutil.virtual_memory().available)
    limit, used = (_CGROUP / "memory.max", _CGROUP / "memory.current")
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


def peak_of(work: Callable[[], None], device: torch.device) -> int:
    """Run some work and return the bytes that it took at its peak, beyond what was taken before.

    On a CPU this is the growth of the process's peak resident memory, begun anew where Linux allows that; pages that
    the process already held and uses again do not count.
    """
    release_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = int(psutil.Process().memory_info().rss)
    reset = Path("/proc/self/clear_refs")
    if reset.is_file():
        reset.write_text("5")  # proc(5): sets the peak resident set size to the current one
    work()
    return max(0, _peak_resident_bytes() - before)


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return peak_memory_bytes()
