"""Adds one LoRA adapter to its full-precision base, in about the memory of one tensor.

The output has the base's own weight files (names, headers, order of bytes), so only the targeted weights differ.
What can be refused is refused before the first byte is written, and the folder appears whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankloom.config import QuantizationConfig
from rankloom.errors import MergeError
from rankloom.merging import Recipe
from rankloom.merging.blocks import Merger
from rankloom.merging.changes import Change
from rankloom.merging.companions import companions
from rankloom.merging.fourbit import RoundTrip
from rankloom.merging.journal import Journal
from rankloom.merging.lora import open_weights, read_lora
from rankloom.merging.pen import Pen
from rankloom.merging.skeleton import quantized_modules, read_skeleton
from rankloom.merging.updates import plan_changes, with_quantized
from rankloom.outputs import file_sha256, folder_sha256, free_output, partial_folder, publish, unfinished
from rankloom.training.resident import compute_dtype_for, training_device
from rankloom_registry.artifacts.place import CONFIG, WEIGHTS
from rankloom_registry.errors import FingerprintError
from rankloom_registry.formats.checkpoint import INDEX, SINGLE, Checkpoint, open_checkpoint

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge wrote.

    Attributes:
        modules_merged: Weights that received an update, or were replaced by one that the adapter holds whole.
        tensors_copied: Tensors copied byte for byte.
        bytes_written: Size of all files of the output.
        output_sha256: One digest of the folder, by `folder_sha256`.
        seconds: Wall time, checks included.
        recipe: What was added to: the base as it is, or as the search quantized it.
        modules_round_tripped: Weights that passed through 4 bits, with an update or without.
        resumed_files: Files found finished from an earlier merge that was interrupted.
    """

    modules_merged: int
    tensors_copied: int
    bytes_written: int
    output_sha256: str
    seconds: float
    recipe: Recipe
    modules_round_tripped: int
    resumed_files: int


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What a merge will do.

    Attributes:
        checkpoint: The base.
        files: Its files that the output will have, by their paths in it.
        changes: Names of its tensors to what happens to them.
        round_trip: How quantized tensors get their values; None in the full-precision recipe.
        weights: The adapter's open tensors.
    """

    checkpoint: Checkpoint
    files: dict[str, Path]
    changes: dict[str, Change]
    round_trip: RoundTrip | None
    weights: Any


def merge_adapter(
    *,
    adapter: Path,
    base: Path,
    output: Path,
    recipe: Recipe = "full-precision",
    quantization: QuantizationConfig | None = None,
    progress: OnProgress | None = None,
) -> MergeReport:
    """Write `base` with `W + scale · B·A` in place of each targeted `W`, computed in fp32 and rounded once.

    A merge that was interrupted or killed goes on after its last finished file when it is called again in the same
    way: until the end, its files lie in the hidden folder `.NAME.partial` beside the output.

    Args:
        adapter: Folder with PEFT's `adapter_config.json` and `adapter_model.safetensors`.
        base: Folder of an unquantized Transformers model in safetensors, one file or several.
        output: Folder to create; it may exist only if it is empty.
        recipe: 'full-precision' adds to the base's own weights. 'as-trained' first replaces each weight that the
            search quantized by its 4-bit values, so the result is the model that the search measured.
        quantization: How the search quantized the base; needed for 'as-trained'.
        progress: Called with (bytes written, bytes in total), first with what an earlier merge had finished, then after
            every block.

    Returns:
        Counts, the digest of the output, and the time taken.

    Raises:
        MergeError: The adapter is not LoRA, does not fit the base or holds NaN or Inf, or the output cannot be written
            there. Nothing is left behind.
        ModelError: Transformers has no causal language model of the base's kind.
        OSError: The disk failed while it was written to; nothing is left behind either.

    Source:
        Hu et al. 2021 (arXiv:2106.09685), section 4.1; the rank-stabilized scale is Kalajdzievski 2023
        (arXiv:2312.03732), DoRA is Liu et al. 2024 (arXiv:2402.09353). The result is that of PEFT's
        `merge_and_unload()` with adapter weights in fp32.
    """
    started = time.perf_counter()
    output = free_output(output)
    with planned_merge(adapter, base, recipe, quantization) as plan:
        sizes = {name: path.stat().st_size for name, path in plan.files.items()}
        total = sum(sizes.values())
        _check_disk(output, total)
        fingerprint = _fingerprint(plan, adapter, recipe, quantization)
        with _disk_errors(output, total), unfinished(output, fingerprint) as staging:
            model, journal = staging / "model", Journal(staging / "journal")
            model.mkdir(exist_ok=True)
            digests = journal.kept(model, sizes)
            resumed = len(digests)
            written = sum(sizes[name] for name in digests)

            def count(size: int) -> None:
                nonlocal written
                written += size
                if progress is not None:
                    progress(written, total)

            def finished(name: str, sha256: str) -> None:
                journal.add(name, sha256)
                digests[name] = sha256

            count(0)
            merger = Merger(plan.weights, plan.round_trip, _device())
            with _one_thread(), Pen(model, finished, count) as pen:
                for name, path in plan.files.items():
                    if name not in digests:
                        pen.open(name)
                        merger.write_file(path, plan.checkpoint.files.get(path), plan.changes, pen)
                        pen.close()
                pen.join()
            publish(model, output)
    changes = plan.changes.values()
    return MergeReport(
        modules_merged=sum(bool(change.updates or change.replaced_by) for change in changes),
        tensors_copied=len(plan.checkpoint.tensors) - len(changes),
        bytes_written=total,
        output_sha256=folder_sha256(digests),
        seconds=time.perf_counter() - started,
        recipe=recipe,
        modules_round_tripped=sum(change.quantized for change in changes),
        resumed_files=resumed,
    )


@contextmanager
def planned_merge(
    adapter: Path, base: Path, recipe: Recipe, quantization: QuantizationConfig | None
) -> Iterator[MergePlan]:
    """Find out what a merge will do, and hold the adapter's weights open meanwhile.

    Raises:
        MergeError: The adapter cannot be merged into this base, or not by this recipe.
        ModelError: Transformers has no causal language model of the base's kind.
    """
    checkpoint = _open_base(base)
    tensors = checkpoint.tensors
    with open_weights(adapter / WEIGHTS) as weights:
        lora = read_lora(adapter / CONFIG)
        skeleton = read_skeleton(checkpoint.folder, tensors.keys())
        changes = plan_changes(weights, lora, skeleton, tensors)
        round_trip = None
        if recipe == "as-trained":
            if quantization is None or not quantization.load_in_4bit:
                raise MergeError(
                    f"the recipe 'as-trained' is for a base that was quantized to 4 bits, got {quantization!r}; "
                    "use 'full-precision'"
                )
            changes = with_quantized(changes, quantized_modules(base, quantization), skeleton, tensors)
            dtype = compute_dtype_for(quantization.bnb_4bit_compute_dtype, training_device())
            round_trip = RoundTrip(quantization, dtype, _device())
        paths = [*checkpoint.files, *_index(checkpoint), *companions(checkpoint.folder)]
        files = {path.relative_to(checkpoint.folder).as_posix(): path for path in paths}
        yield MergePlan(checkpoint, files, changes, round_trip, weights)


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
    for index in _index(checkpoint):
        found = {name: path.name for path, header in checkpoint.files.items() for name in header.tensors}
        named = json.loads(index.read_bytes())["weight_map"]
        if wrong := sorted(name for name in found | named if found.get(name) != named.get(name)):
            raise MergeError(f"{index} must name the file of every tensor, but is wrong on {wrong[0]}; fix it")
    return checkpoint


def _index(checkpoint: Checkpoint) -> list[Path]:
    """The index of the weights, if it is in use."""
    index = checkpoint.folder / INDEX
    return [index] if index.is_file() and checkpoint.folder / SINGLE not in checkpoint.files else []


def _fingerprint(plan: MergePlan, adapter: Path, recipe: Recipe, quantization: QuantizationConfig | None) -> str:
    """What must be the same for a merge to go on with another one's files; large files count by size and time."""
    states = {name: path.stat() for name, path in plan.files.items()}
    base = {name: [state.st_size, state.st_mtime_ns, state.st_ino] for name, state in states.items()}
    told = {
        "base": [str(plan.checkpoint.folder.resolve()), base],
        "adapter": [file_sha256(adapter / name) for name in (CONFIG, WEIGHTS)],
        "recipe": recipe,
        "quantization": None if quantization is None else quantization.model_dump(),
        "dtype": None if plan.round_trip is None else str(plan.round_trip.dtype),
        "device": _device().type,
        "versions": [
            importlib.metadata.version(name) for name in ("rankloom", "torch", "transformers", "bitsandbytes")
        ],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _check_disk(output: Path, total: int) -> None:
    there = sum(path.stat().st_size for path in partial_folder(output).rglob("*") if path.is_file())
    free = shutil.disk_usage(output.parent).free
    if total > free + there:
        raise MergeError(
            f"the output needs {total - there:,} bytes, but {output.parent} has {free:,} free; "
            "free some, or name an output on another disk"
        )


@contextmanager
def _disk_errors(output: Path, total: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MergeError(
            f"the output needs {total:,} bytes, but the disk of {output} filled up meanwhile; "
            "free some, or name an output on another disk"
        ) from error


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _one_thread() -> Iterator[None]:
    # On blocks this small, threads wait for each other: two were five times slower than one on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
