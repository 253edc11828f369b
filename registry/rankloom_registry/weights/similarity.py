"""How alike the weights of two adapters are; nothing here forms an update at full size."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankloom_registry.weights.lora import LoraAdapter, Matrix, Update
from rankloom_registry.weights.measures import Progress, decompose, mean


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSimilarity:
    """How alike two adapters' updates of one module are.

    An overlap is the Grassmann similarity φ of Hu et al., "LoRA" (2021), section 7.2, equation 4: ‖U₁ᵀU₂‖² / min(i, j)
    for orthonormal bases of i and j directions; 0 if the spaces are orthogonal, 1 if one lies in the other. Two random
    spaces of a room of n dimensions have max(i, j) / n on average.

    Args:
        module: Its name in the base model.
        cosine: Cosine of the angle between the two updates, seen as vectors; None if one of them is 0.
        column_overlap: Overlap of the spaces in which the updates write (of B); None if one of them is 0.
        row_overlap: Overlap of the spaces from which they read (of A); None if one of them is 0.
    """

    module: str
    cosine: float | None
    column_overlap: float | None
    row_overlap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """How alike two adapters are, over the modules that both update.

    Args:
        modules: By the modules' names.
        cosine: Cosine of the angle between all shared updates together; None if there is none or one is 0.
        column_overlap: The mean over the shared modules.
        row_overlap: The mean over the shared modules.
        only_first: Modules that only the first adapter updates, or whose updates differ in shape.
        only_second: The same of the second.
    """

    modules: Sequence[ModuleSimilarity]
    cosine: float | None
    column_overlap: float | None
    row_overlap: float | None
    only_first: Sequence[str]
    only_second: Sequence[str]


def compare_weights(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    directions: int | None = None,
    progress: Progress | None = None,
) -> Similarity:
    """Say how alike the updates of two adapters are; their ranks may differ.

    Args:
        first: A folder that PEFT saved an adapter to.
        second: Another one.
        directions: The most singular directions of each update that the overlaps look at, the largest first; None
            for all that are not 0.
        progress: Called with the modules done and the modules in all.

    Returns:
        The figures, over the modules that both update.

    Raises:
        ArtifactError: If an adapter is malformed.
    """
    one, other = LoraAdapter(first), LoraAdapter(second)
    shared = [name for name in one.modules if name in other.modules and one.shape(name) == other.shape(name)]
    modules: list[ModuleSimilarity] = []
    products = np.zeros(3)  # of the updates with each other and with themselves
    for done, module in enumerate(shared, 1):
        updates = one.update(module), other.update(module)
        product = np.array([inner_product(*updates), *(inner_product(update, update) for update in updates)])
        products += product
        (left, singular, right), (other_left, other_singular, other_right) = (decompose(update) for update in updates)
        i, j = (_directions(values, updates[0].shape, directions) for values in (singular, other_singular))
        modules.append(
            ModuleSimilarity(
                module=module,
                cosine=_cosine(product),
                column_overlap=subspace_overlap(left[:, :i], other_left[:, :j]),
                row_overlap=subspace_overlap(right[:, :i], other_right[:, :j]),
            )
        )
        if progress:
            progress(done, len(shared))
    return Similarity(
        modules=modules,
        cosine=_cosine(products),
        column_overlap=mean([one.column_overlap for one in modules if one.column_overlap is not None]),
        row_overlap=mean([one.row_overlap for one in modules if one.row_overlap is not None]),
        only_first=[name for name in one.modules if name not in shared],
        only_second=[name for name in other.modules if name not in shared],
    )


def inner_product(first: Update, second: Update) -> float:
    """The Frobenius inner product of two updates of one shape: s₁s₂ tr((B₁ᵀB₂)(A₂A₁ᵀ))."""
    return first.scale * second.scale * float(np.sum((first.b.T @ second.b) * (first.a @ second.a.T)))


def subspace_overlap(first: Matrix, second: Matrix) -> float | None:
    """The Grassmann similarity of two spaces, as `ModuleSimilarity` describes it.

    Args:
        first: An orthonormal basis, of shape (n, i).
        second: Another, of shape (n, j).

    Returns:
        A number from 0 to 1; None if one of the spaces is empty.
    """
    smaller = min(first.shape[1], second.shape[1])
    return float(np.sum(np.square(first.T @ second))) / smaller if smaller else None


def _directions(singular: npt.NDArray[np.float64], shape: tuple[int, int], limit: int | None) -> int:
    # What is this small comes from rounding, and its direction says nothing.
    noise = singular.max(initial=0.0) * max(shape) * np.finfo(np.float64).eps
    count = int(np.count_nonzero(singular > noise))
    return count if limit is None else min(count, limit)


def _cosine(products: npt.NDArray[np.float64]) -> float | None:
    inner, first, second = products
    # Rounding can leave the cosine of two equal updates just above 1.
    return max(-1.0, min(1.0, float(inner / math.sqrt(first * second)))) if first > 0 and second > 0 else None
