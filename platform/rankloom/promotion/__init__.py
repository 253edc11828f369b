"""Promotion: an adapter becomes a model that is checked, measured, exported and recorded."""

from typing import Literal

__all__ = ["Format"]

Format = Literal["safetensors", "adapter", "nf4", "gguf"]
