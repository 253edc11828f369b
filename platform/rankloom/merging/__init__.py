"""Merges an adapter into the full-precision weights of its base, shard by shard."""

from typing import Literal

__all__ = ["Recipe", "Verify"]

Recipe = Literal["full-precision", "as-trained"]
Verify = Literal["sampled", "full"]
