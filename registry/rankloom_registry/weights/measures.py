"""What an adapter's weights say: how large its updates are, and how many directions they use.

An update is never formed at full size: with B = Q_B R_B and Aᵀ = Q_A R_A, the singular values of B·A are those of the
small R_B R_Aᵀ, and its singular vectors are theirs, turned by Q_B and Q_A.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rankloom_registry.artifacts.keys import base_tensor
from rankloom_registry.errors import ArtifactError
from rankloom_registry.formats.checkpoint import Checkpoint, open_checkpoint
from rankloom_registry.formats.safetensors import float32_blocks
from rankloom_registry.weights.lora import LoraAdapter, Matrix, Update

DEAD = 1e-8  # share of the median norm below which a module's update is dead

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleWeights:
    """One module's update W₀ → W₀ + scale · B·A.

    Args:
        module: Its name in the base model.
        shape: (out, in) of the update.
        r: The rank of its factors.
        effective_rank: The exponential of the entropy of the singular values, each divided by their sum: 1 if one
            direction does it all, r if all do alike (Roy & Vetterli, "The effective rank", EUSIPCO 2007); 0 if they
            all are 0.
        frobenius_norm: Root of the sum of the squares of the update's elements.
        spectral_norm: Its largest singular value.
        relative_norm: Its Frobenius norm against that of the base's weight, if the base was given and has one.
        dead: Whether its norm is 0, or below 1e-8 of the median over the adapter's modules.
    """

    module: str
    shape: tuple[int, int]
    r: int
    effective_rank: float
    frobenius_norm: float
    spectral_norm: float
    relative_norm: float | None
    dead: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """All updates of an adapter.

    Args:
        modules: By the modules' names.
        update_norm: Frobenius norm of all updates together.
        effective_rank: The mean over the modules that are not dead; None if all are.
        relative_norm: `update_norm` against the norm of all weights that are updated, if the base was given.
        dead_modules: How many modules are dead.
        other_tensors: Names of the tensors that are no LoRA factor; nothing here speaks of them.
    """

    modules: Sequence[ModuleWeights]
    update_norm: float
    effective_rank: float | None
    relative_norm: float | None
    dead_modules: int
    other_tensors: Sequence[str]

    def summary(self) -> dict[str, float | None]:
        """What the registry keeps in columns; to be put into the metrics of `AdapterAdded`."""
        return {"effective_rank": self.effective_rank, "update_norm": self.update_norm}


def read_weights(
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> AdapterWeights:
    """Measure an adapter's updates.

    Args:
        folder: The folder that PEFT saved the adapter to.
        base: The base model's folder or file; its touched weights are then read as well, a block at a time.
        progress: Called with the modules done and the modules in all.

    Returns:
        The figures.

    Raises:
        ArtifactError: If the adapter is malformed.
        FingerprintError: If `base` does not hold a model as safetensors.
    """
    adapter = LoraAdapter(folder)
    checkpoint = open_checkpoint(Path(base)) if base is not None else None
    values: dict[str, npt.NDArray[np.float64]] = {}
    base_norms: dict[str, float | None] = {}
    for done, module in enumerate(adapter.modules, 1):
        values[module] = singular_values(adapter.update(module))
        base_norms[module] = _base_norm(checkpoint, module) if checkpoint else None
        if progress:
            progress(done, len(adapter.modules))
    norms = {module: float(np.linalg.norm(singular)) for module, singular in values.items()}
    floor = DEAD * float(np.median(list(norms.values()))) if norms else 0.0
    modules = [
        ModuleWeights(
            module=module,
            shape=adapter.shape(module),
            r=adapter.rank(module),
            effective_rank=effective_rank(values[module]),
            frobenius_norm=norms[module],
            spectral_norm=float(values[module].max(initial=0.0)),
            relative_norm=_ratio(norms[module], base_norms[module]),
            dead=norms[module] == 0 or norms[module] < floor,
        )
        for module in adapter.modules
    ]
    known = [norm for norm in base_norms.values() if norm is not None]
    return AdapterWeights(
        modules=modules,
        update_norm=math.hypot(*norms.values()),
        effective_rank=mean([one.effective_rank for one in modules if not one.dead]),
        relative_norm=_ratio(math.hypot(*norms.values()), math.hypot(*known)) if len(known) == len(modules) else None,
        dead_modules=sum(one.dead for one in modules),
        other_tensors=adapter.other_tensors,
    )


def singular_values(update: Update) -> npt.NDArray[np.float64]:
    """The singular values of scale · B·A, the largest first; a third of the work of `decompose`.

    Args:
        update: A of shape (r, in), B of shape (out, r).

    Returns:
        As many as the smallest of r, in and out.
    """
    core = update.scale * _triangle(update.b) @ _triangle(update.a.T).T
    return np.asarray(np.linalg.svd(core, compute_uv=False), np.float64)


def decompose(update: Update) -> tuple[Matrix, npt.NDArray[np.float64], Matrix]:
    """The thin singular value decomposition of scale · B·A.

    Args:
        update: A of shape (r, in), B of shape (out, r).

    Returns:
        U of shape (out, k), k ≤ r singular values, the largest first, and V of shape (in, k).
    """
    left, left_core = np.linalg.qr(update.b)
    right, right_core = np.linalg.qr(update.a.T)
    u, singular, vh = np.linalg.svd(update.scale * left_core @ right_core.T, full_matrices=False)
    return left @ u, singular, right @ vh.T


def effective_rank(singular: npt.NDArray[np.float64]) -> float:
    """The effective rank of singular values, as `ModuleWeights` describes it."""
    positive = singular[singular > 0]
    if not len(positive):
        return 0.0
    share = positive / positive.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def _triangle(matrix: Matrix) -> Matrix:
    # numpy's annotations know only of the mode that returns Q as well.
    core: Any = np.linalg.qr(matrix, mode="r")
    return np.asarray(core, np.float64)


def _base_norm(checkpoint: Checkpoint, module: str) -> float | None:
    for file, header in checkpoint.files.items():
        if name := base_tensor(f"{module}.weight", header.tensors):
            squares = _squares(float32_blocks(file, header, name))
            try:
                return math.sqrt(math.fsum(squares))
            except ArtifactError:  # a quantized weight: its bytes are not its values
                return None
    return None


def _squares(blocks: Iterator[npt.NDArray[np.float32]]) -> Iterator[float]:
    for block in blocks:
        yield float(np.sum(np.square(block, dtype=np.float64)))


def _ratio(value: float, reference: float | None) -> float | None:
    return value / reference if reference else None


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return math.fsum(values) / len(values) if values else None
