"""An adapter as tokens wear it: its factors in each layer, and how its inputs are dropped."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rankloom.training.packed.layout import Span


@dataclass(frozen=True, slots=True)
class LowRank:
    """One adapter's factors in one layer, as views into its trial's storage.

    Attributes:
        a: [r, in_features], in the dtype of the products.
        b: [out_features, r], in the dtype of the products.
        grad_a: fp32 [r, in_features]; backward adds to it.
        grad_b: fp32 [out_features, r]; backward adds to it.
        scaling: alpha / r, or alpha / sqrt(r) with rsLoRA.
    """

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class Wearer:
    """Tokens that wear an adapter.

    Attributes:
        span: Its tokens.
        factors: The adapter, by qualified name of the layer.
        dropout: Probability that an input element is dropped; 0 in evaluation.
        seed: Of the dropout masks: the same seed and layer give the same mask, whoever else is in the pack and however
            often the layer runs (activations may be computed again in the backward pass).
    """

    span: Span
    factors: dict[str, LowRank]
    dropout: float = 0.0
    seed: int = 0


def product_dtype(device: torch.device, compute_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the low-rank products: on a CPU fp32, as the casts cost more than bfloat16 saves there."""
    return torch.float32 if device.type == "cpu" else compute_dtype
