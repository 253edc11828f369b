"""What each model that a promotion measures is called: in its messages, its tables and the model card."""

from __future__ import annotations

_LABELS = {
    "adapter": "adapter as trained",
    "base": "base without the adapter",
    "rounding": "adapter in another precision",
    "full-precision": "merged full-precision",
    "as-trained": "merged as-trained",
    "nf4": "merged and quantized to NF4",
}


def label(name: str) -> str:
    """Return the words for a model, named as in a promotion's `checks`: a recipe, or a format and its type."""
    return _LABELS.get(name, f"merged and converted to {name}")
