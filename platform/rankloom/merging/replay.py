"""Replays a merge in float64, by other code than made it, and compares what came out with what should have."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rankloom.config import QuantizationConfig
from rankloom.errors import MergeError
from rankloom.merging import Recipe, Verify
from rankloom.merging.changes import DTYPES, Change, LoraUpdate
from rankloom.merging.fourbit import BLOCK, RoundTrip
from rankloom.merging.merge import MergePlan, OnProgress, planned_merge
from rankloom_registry.errors import ArtifactError
from rankloom_registry.formats.safetensors import SafetensorsHeader, TensorSpan, raw_blocks, read_safetensors_header

_ROUNDING = 0.5  # ulp
_ROWS = 64  # at a time: blocks of 4-bit values begin and end with them
_SAMPLED_BLOCKS = 4  # of 64 rows each, of every matrix


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay found.

    Attributes:
        tensors: Tensors compared: all of the base's.
        elements_checked: Elements computed again or compared byte for byte.
        largest_error_ulp: Largest difference between a merged element and its value in float64, in units of its last
            place in the output's dtype, less what fp32 arithmetic may lose; up to a half is rounding.
        differing: Tensors with an element that differs by more than rounding, or an untouched one with another hash.
    """

    tensors: int
    elements_checked: int
    largest_error_ulp: float
    differing: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the merged model is the base plus the adapter, and nothing else."""
        return not self.differing


def replay(
    *,
    adapter: Path,
    base: Path,
    merged: Path,
    recipe: Recipe = "full-precision",
    quantization: QuantizationConfig | None = None,
    how: Verify = "sampled",
    progress: OnProgress | None = None,
) -> ReplayReport:
    """Check that a merged model minus its base is the adapter's update, tensor by tensor.

    Args:
        adapter: The adapter that was merged.
        base: The base that it was merged into.
        merged: The folder that came out.
        recipe: As in the merge.
        quantization: As in the merge.
        how: 'full' computes every element of every changed tensor again; 'sampled' 256 rows of each matrix, spread
            over it. Tensors without a change are compared in full either way.
        progress: Called with (tensors compared, tensors in total).

    Returns:
        Counts, the largest error, and the tensors that differ.

    Raises:
        MergeError: The merged folder lacks a weight file, or its header is not the base's; or the adapter cannot be
            merged into this base at all.
        ModelError: Transformers has no causal language model of the base's kind.
    """
    checked, largest, differing = 0, 0.0, []
    with planned_merge(adapter, base, recipe, quantization) as plan:
        total = len(plan.checkpoint.tensors)
        done = 0
        for path, header in plan.checkpoint.files.items():
            other = merged / path.name
            _require_same_header(other, path, header)
            for name, span in header.tensors.items():
                change = plan.changes.get(name)
                if change is None:
                    count, error, sound = math.prod(span.shape), 0.0, _same_bytes(path, other, header, name)
                else:
                    before, after = (_stored(file, header, span) for file in (path, other))
                    count, error, sound = _compare(plan, change, before, after, how)
                checked, largest, done = checked + count, max(largest, error), done + 1
                if not sound:
                    differing.append(name)
                if progress is not None:
                    progress(done, total)
    return ReplayReport(total, checked, largest, tuple(differing))


def _require_same_header(path: Path, base: Path, header: SafetensorsHeader) -> None:
    try:
        found = read_safetensors_header(path)
    except (ArtifactError, FileNotFoundError) as error:
        raise MergeError(f"a merged model must have the base's weight files: {error}; merge again") from error
    if found != header:
        raise MergeError(f"{path} must have the same header as {base}, but tensors or metadata differ; merge again")


def _same_bytes(path: Path, other: Path, header: SafetensorsHeader, name: str) -> bool:
    digests = [hashlib.sha256(), hashlib.sha256()]
    for digest, file in zip(digests, (path, other), strict=True):
        for block in raw_blocks(file, header, name):
            digest.update(block.data)
    return digests[0].digest() == digests[1].digest()


def _stored(path: Path, header: SafetensorsHeader, span: TensorSpan) -> torch.Tensor:
    """A tensor of a file, mapped into memory: only the rows that are looked at are read."""
    raw = np.memmap(path, np.uint8, "c", header.data_start + span.start, (span.nbytes,))
    return torch.from_numpy(raw).view(DTYPES[span.dtype]).view(span.shape)


def _compare(
    plan: MergePlan, change: Change, before: torch.Tensor, after: torch.Tensor, how: Verify
) -> tuple[int, float, bool]:
    """Return how many elements were compared, the largest error in ulp, and whether all are as they should be."""
    if change.replaced_by is not None:
        saved = plan.weights.get_tensor(change.replaced_by).to(after.dtype)
        return after.numel(), 0.0, torch.equal(saved, after)
    checked, largest, sound = 0, 0.0, True
    shape = before.shape[-2:]
    for index, (old, new) in enumerate(zip(before.view(-1, *shape), after.view(-1, *shape), strict=True)):
        if change.transposed:
            old, new = old.T, new.T
        update = _Update(plan, change.updates[index], len(old)) if change.updates else None
        values = _Quantized(plan.round_trip, old) if change.quantized and plan.round_trip is not None else old
        for start in _starts(len(old), how):
            rows = slice(start, min(start + _ROWS, len(old)))
            weight, merged = values[rows].double(), new[rows].double()
            expected, noise = (weight, torch.zeros_like(weight)) if update is None else update.applied(weight, rows)
            errors = ((merged - expected).abs() - noise).clamp(min=0) / _ulp(expected, after.dtype)
            error = errors.nan_to_num(nan=math.inf).max().item()
            checked, largest, sound = checked + errors.numel(), max(largest, error), sound and error <= _ROUNDING
    return checked, largest, sound


def _starts(rows: int, how: Verify) -> list[int]:
    blocks = -(-rows // _ROWS)
    if how == "full" or blocks <= _SAMPLED_BLOCKS:
        return [block * _ROWS for block in range(blocks)]
    return [block * (blocks - 1) // (_SAMPLED_BLOCKS - 1) * _ROWS for block in range(_SAMPLED_BLOCKS)]


def _ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance of two neighbours in a dtype, at each of some float64 values."""
    info = torch.finfo(dtype)
    _, exponents = torch.frexp(values.abs().clamp(min=info.tiny))
    return torch.ldexp(torch.full_like(values, info.eps), exponents - 1)


class _Update:
    """One update in float64."""

    def __init__(self, plan: MergePlan, update: LoraUpdate, rows: int) -> None:
        def load(name: str) -> torch.Tensor:
            tensor: torch.Tensor = plan.weights.get_tensor(name)
            return tensor.double()

        a = load(update.lora_a).view(update.experts, update.rank, -1)[update.expert]
        b = load(update.lora_b)
        b = b.view(len(b), update.rank, update.experts)[update.first_row : update.first_row + rows, :, update.expert]
        self._a, self._b, self._scale = a, b, update.scale
        self._magnitude = None if update.magnitude is None else load(update.magnitude)
        # What fp32 may lose: a product of `rank` terms, a sum, and for DoRA a row's length and two more operations.
        self._precision = (update.rank + 32) * 2.0**-23

    def applied(self, weight: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows with the update, and how far fp32 may have been from them."""
        b = self._b[rows]
        expected = weight + self._scale * (b @ self._a)
        noise = self._precision * (weight.abs() + abs(self._scale) * (b.abs() @ self._a.abs()))
        if self._magnitude is None:
            return expected, noise
        factor = (self._magnitude[rows] / expected.norm(dim=1))[:, None]
        return factor * expected, factor.abs() * noise + self._precision * (factor * expected).abs()


class _Quantized:
    """Rows of a matrix after bitsandbytes itself quantized and dequantized them."""

    def __init__(self, round_trip: RoundTrip, matrix: torch.Tensor) -> None:
        self._round_trip, self._matrix = round_trip, matrix
        self._factors = torch.empty(0)
        self._whole = round_trip.whole(matrix) if matrix.shape[1] % BLOCK else None
        if self._whole is None:
            groups = (matrix[start : start + _ROWS] for start in range(0, len(matrix), _ROWS))
            largest = (rows.to(round_trip.dtype).float().reshape(-1, BLOCK).abs().amax(-1) for rows in groups)
            _, self._factors = round_trip.scales(largest)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        if self._whole is not None:
            return self._whole[rows]
        columns = self._matrix.shape[1]
        part = slice(rows.start * columns // BLOCK, rows.stop * columns // BLOCK)
        return self._round_trip.slowly(self._matrix[rows], self._factors[part])
