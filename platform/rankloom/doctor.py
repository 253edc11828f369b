"""What this machine can do, and what to fix before a search."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

PACKAGES = (
    "ray",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "trl",
    "datasets",
    "optuna",
    "duckdb",
    "streamlit",
)
FREE_DISK_BYTES = 5 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check.

    Attributes:
        state: 'ok', 'note' (works, could be better) or 'error' (a search cannot run).
        check: What was looked at.
        found: What was found.
        fix: What to do about it; empty when ok.
    """

    state: Literal["ok", "note", "error"]
    check: str
    found: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the finding as JSON-ready values."""
        return asdict(self)


def diagnose() -> list[Finding]:
    """Look at packages, devices, 4-bit arithmetic, memory and disk."""
    packages = list(_packages())
    if any(finding.state == "error" for finding in packages):
        return packages
    return [*packages, *_devices(), _four_bit(), _disk()]


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(state="ok", check=name, found=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(state="error", check=name, found="not installed", fix=f"pip install {name}")


def _devices() -> Iterator[Finding]:
    import torch

    from rankloom.training.resident import compute_dtype_for, training_device

    device = training_device()
    dtype = str(compute_dtype_for("auto", device)).removeprefix("torch.")
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(
                state="ok",
                check=f"GPU {index}",
                found=f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, computes in {dtype}",
            )
    else:
        yield Finding(
            state="note",
            check="GPU",
            found=f"none; {os.cpu_count()} CPU cores, computes in {dtype}",
            fix="fine for models of some hundred million parameters; use a CUDA machine for larger ones",
        )


def _four_bit() -> Finding:
    """Quantize a small matrix to NF4 and back: the arithmetic of QLoRA, on the device that would train."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from rankloom.training.resident import training_device

    weight = torch.linspace(-1, 1, 4096, device=training_device()).reshape(64, 64)
    try:
        packed, state = quantize_4bit(weight, quant_type="nf4")
        error = float((dequantize_4bit(packed, state) - weight).abs().max())
    except RuntimeError as failure:
        return Finding(
            state="error",
            check="4-bit arithmetic",
            found=" ".join(str(failure).split())[:200],
            fix="install a bitsandbytes build for this device",
        )
    if error > 0.2:
        return Finding(
            state="error", check="4-bit arithmetic", found=f"NF4 is off by {error:.2f}", fix="reinstall bitsandbytes"
        )
    return Finding(state="ok", check="4-bit arithmetic", found=f"NF4 works, largest error {error:.3f} of 1")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / 2**30:.0f} GiB free here"
    if free < FREE_DISK_BYTES:
        return Finding(state="note", check="disk", found=found, fix="a merged model needs as much as its base")
    return Finding(state="ok", check="disk", found=found)
