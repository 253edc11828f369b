"""What may happen to a tensor of the base in a merge; a tensor without a change is copied byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rankloom.errors import MergeError
from rankloom_registry.formats.safetensors import TensorSpan

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoraUpdate:
    """What one matrix W of shape (out, in) receives: scale · B·A, and with DoRA each row's length as well.

    Attributes:
        lora_a: Name of the adapter's tensor A, of shape (r · experts, in).
        lora_b: Name of the adapter's tensor B, of shape (out, r · experts).
        rank: r.
        scale: Factor of B·A.
        magnitude: Name of the adapter's tensor with the rows' lengths (DoRA), of shape (out,).
        experts: How many of a mixture's experts share A and B: A holds them one after another, B takes turns.
        expert: Which of them the matrix is of.
        first_row: Which of B's rows is the matrix's first, where one update changes several that are stored apart.
    """

    lora_a: str
    lora_b: str
    rank: int
    scale: float
    magnitude: str | None = None
    experts: int = 1
    expert: int = 0
    first_row: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """How a tensor of the output comes from the base's.

    Attributes:
        updates: One for each of the tensor's matrices: a mixture's experts are (experts, …, …); none if it has none.
        transposed: Whether the tensor's matrices are (in, out).
        quantized: Whether the search trained on the tensor's 4-bit values.
        replaced_by: Name of the adapter's tensor that takes its place.
    """

    updates: tuple[LoraUpdate, ...] = ()
    transposed: bool = False
    quantized: bool = False
    replaced_by: str | None = None


def require_float(name: str, span: TensorSpan) -> None:
    """Raise unless numbers can be added to a tensor of the base.

    Raises:
        MergeError: It is of another dtype.
    """
    if span.dtype not in DTYPES:
        raise MergeError(f"a merged weight must be F32, F16 or BF16, but {name} is {span.dtype}; give another base")


def require_fit(update: LoraUpdate, name: str, matrix: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless an update's tensors have the shapes that a matrix asks for.

    Args:
        update: The update.
        name: The matrix's tensor.
        matrix: (out, in) of all that the update changes.
        shapes: Those of the adapter's tensors.

    Raises:
        MergeError: Some shape differs.
    """
    rank = update.rank * update.experts
    asked = {update.lora_a: (rank, *matrix[1:]), update.lora_b: (*matrix[:1], rank)}
    if update.magnitude is not None:
        asked[update.magnitude] = matrix[:1]
    for tensor, shape in asked.items():
        if len(matrix) != 2 or shapes[tensor] != shape:
            raise MergeError(
                f"lora_A must be (r, in) and lora_B (out, r), but {name} is {matrix}, r={update.rank} of "
                f"{update.experts}, and {tensor} {shapes[tensor]}; give the base that the adapter was trained on"
            )
