"""Adds one LoRA adapter to its full-precision base, in about the memory of one tensor.

The output has the base's own weight files (names, headers, order of bytes), so only the targeted weights differ.
What can be refused is refused before the first byte is written, and the folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankloom.errors import MergeError
from rankloom.merging.updates import DTYPES, LoraUpdate, open_weights, plan_updates, read_lora
from rankloom_registry.errors import FingerprintError
from rankloom_registry.files import sync_folder
from rankloom_registry.formats.checkpoint import INDEX, Checkpoint, open_checkpoint
from rankloom_registry.formats.safetensors import SafetensorsHeader, raw_blocks

# Blocks this small stay in the processor's cache through cast, add, check and hash.
_BLOCK_BYTES = 2 << 20
# A matrix product gives the same bits block by block as at once only if blocks end where the BLAS kernel's tiles do.
_TILE_ROWS = 64
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge wrote.

    Attributes:
        modules_merged: Weights that received an update.
        tensors_copied: Tensors copied byte for byte.
        bytes_written: Size of all files of the output.
        output_sha256: One digest of the folder: what `sha256sum * | sha256sum` prints inside it, with LC_ALL=C.
        seconds: Wall time, checks included.
    """

    modules_merged: int
    tensors_copied: int
    bytes_written: int
    output_sha256: str
    seconds: float


def merge_adapter(
    *, adapter: Path, base: Path, output: Path, progress: Callable[[int, int], None] | None = None
) -> MergeReport:
    """Write `base` with `W + scale · B·A` in place of each targeted `W`, computed in fp32 and rounded once.

    Args:
        adapter: Folder with PEFT's `adapter_config.json` and `adapter_model.safetensors`.
        base: Folder of an unquantized Transformers model in safetensors, one file or several.
        output: Folder to create; it may exist only if it is empty.
        progress: Called with (bytes written, bytes in total) after every block.

    Returns:
        Counts, the digest of the output, and the time taken.

    Raises:
        MergeError: The adapter is not plain LoRA, does not fit the base or holds NaN or Inf, or the output cannot be
            written there. Nothing is left behind.
        OSError: The disk failed while it was written to; nothing is left behind either.

    Source:
        Hu et al. 2021 (arXiv:2106.09685), section 4.1; the rank-stabilized scale is Kalajdzievski 2023
        (arXiv:2312.03732). The result is that of PEFT's `merge_and_unload()` with adapter weights in fp32.
    """
    started = time.perf_counter()
    output = output.absolute()
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise MergeError(f"the output must be a new or empty folder, got {output}; name another, or remove it first")
    checkpoint = _open_base(base)
    companions = _companions(checkpoint)
    with open_weights(adapter / "adapter_model.safetensors") as weights:
        updates = plan_updates(weights, read_lora(adapter / "adapter_config.json"), checkpoint)
        total = sum(path.stat().st_size for path in [*checkpoint.files, *companions])
        _check_disk(output, total)
        written = 0

        def count(size: int) -> None:
            nonlocal written
            written += size
            if progress is not None:
                progress(written, total)

        digests = {}
        with _staged(output) as folder, _one_thread():
            for path, header in checkpoint.files.items():
                digests[path.name] = _write(folder / path.name, _merged_file(path, header, updates, weights), count)
            for path in companions:
                digests[path.name] = _write(folder / path.name, [path.read_bytes()], count)

    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return MergeReport(
        modules_merged=len(updates),
        tensors_copied=len(checkpoint.tensors) - len(updates),
        bytes_written=written,
        output_sha256=hashlib.sha256(listing.encode()).hexdigest(),
        seconds=time.perf_counter() - started,
    )


def _open_base(base: Path) -> Checkpoint:
    try:
        checkpoint = open_checkpoint(base)
    except FingerprintError as error:
        raise MergeError(str(error)) from error
    if not checkpoint.config or checkpoint.config.get("quantization_config"):
        raise MergeError(
            f"the base must have a config.json without quantization_config, got {base}; "
            "give the folder of the full-precision model"
        )
    if base / INDEX in _companions(checkpoint):
        found = {name: path.name for path, header in checkpoint.files.items() for name in header.tensors}
        named = json.loads((base / INDEX).read_bytes())["weight_map"]
        if wrong := sorted(name for name in found | named if found.get(name) != named.get(name)):
            raise MergeError(f"{base / INDEX} must name the file of every tensor, but is wrong on {wrong[0]}; fix it")
    return checkpoint


def _companions(checkpoint: Checkpoint) -> list[Path]:
    """Files that go along unchanged; an index stays behind where it is not the one in use."""
    used = None if checkpoint.folder / "model.safetensors" in checkpoint.files else INDEX
    return sorted(
        path
        for path in {path for pattern in _COMPANIONS for path in checkpoint.folder.glob(pattern) if path.is_file()}
        if not path.name.startswith((".", "adapter_")) and (path.name == used or not path.name.endswith(".index.json"))
    )


def _check_disk(output: Path, needed: int) -> None:
    existing = next(parent for parent in output.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise MergeError(
            f"the output needs {needed:,} bytes, but {existing} has {free:,} free; "
            "free some, or name an output on another disk"
        )


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its name at the end, and is gone if anything went wrong."""
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # In a container, a merge that was killed had this process id too.
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_folder(partial)
        partial.rename(output)
    # Planned: whatever ends a merge, Ctrl-C too, leaves nothing half-made behind, and is raised again.
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(output.parent)


@contextmanager
def _one_thread() -> Iterator[None]:
    # On blocks this small, threads wait for each other: two were five times slower than one on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write(path: Path, blocks: Iterable[bytes | memoryview], count: Callable[[int], None]) -> str:
    """Write one file, make it durable, and return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for block in blocks:
            digest.update(block)
            count(file.write(block))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _merged_file(
    path: Path, header: SafetensorsHeader, updates: Mapping[str, LoraUpdate], weights: Any
) -> Iterator[bytes | memoryview]:
    with path.open("rb") as file:
        yield file.read(header.data_start)
    for name, span in header.tensors.items():
        if name in updates:
            raw = np.memmap(path, np.uint8, "c", header.data_start + span.start, (span.end - span.start,))
            weight = torch.from_numpy(raw).view(DTYPES[span.dtype]).view(span.shape)
            yield from _merged_rows(name, weight, updates[name], weights)
        else:
            yield from (block.data for block in raw_blocks(path, header, name))


def _merged_rows(name: str, weight: torch.Tensor, update: LoraUpdate, weights: Any) -> Iterator[bytes | memoryview]:
    a, b = (weights.get_tensor(half).float() for half in (update.lora_a, update.lora_b))
    rows = _BLOCK_BYTES // (weight.shape[1] * weight.itemsize)
    step = max(_TILE_ROWS, rows - rows % _TILE_ROWS)
    parts = torch.split(a, step, dim=1) if update.transposed else torch.split(b, step)
    for block, part in zip(torch.split(weight, step), parts, strict=True):
        delta = (b @ part).T if update.transposed else part @ a
        merged = (block.float() + delta * update.scale).to(weight.dtype).contiguous()
        # NaN and Inf survive a sum, and a sum is twenty times faster than `isfinite` on half precision.
        if not math.isfinite(merged.float().sum().item()):
            raise MergeError(f"{name} must be finite in {weight.dtype} once merged; check the base and the adapter")
        yield merged.view(torch.uint8).numpy().data
