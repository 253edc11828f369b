"""Reads a LoRA adapter as PEFT saved it, module by module, without torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rankloom_registry.artifacts.keys import PREFIX, Lora, parse_key
from rankloom_registry.errors import ArtifactError
from rankloom_registry.formats.safetensors import SafetensorsHeader, float32_blocks, read_safetensors_header
from rankloom_registry.weights.touched import read_config

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What one module's weight receives: scale · B·A.

    Args:
        a: A, of shape (r, in).
        b: B, of shape (out, r).
        scale: The factor of B·A.
    """

    a: Matrix
    b: Matrix
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return len(self.b), self.a.shape[1]


class LoraAdapter:
    """An adapter folder, of which one module's factors are in memory at a time.

    Args:
        folder: It holds `adapter_config.json` and `adapter_model.safetensors`.

    Attributes:
        config: The configuration.
        modules: Names of the modules that have an update, as the base model calls them.
        other_tensors: Names of tensors that are no LoRA factor, such as those of `modules_to_save`.

    Raises:
        ArtifactError: If a file is missing or malformed, or a factor lacks its partner or does not fit it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder) / "adapter_model.safetensors"
        self.config = read_config(Path(folder) / "adapter_config.json")
        try:
            self._header: SafetensorsHeader = read_safetensors_header(self._path)
        except OSError as error:
            raise ArtifactError(f"cannot read {self._path}: {error.strerror}; give an adapter's folder") from error
        self._factors: dict[str, dict[str, str]] = {}
        self.other_tensors: list[str] = []
        for name, span in self._header.tensors.items():
            # A convolution's factors have more than two dimensions, and its update is not their product.
            key = parse_key(name)
            if isinstance(key, Lora) and key.is_matrix and len(span.shape) == 2:
                self._factors.setdefault(key.module.removeprefix(PREFIX), {})[key.half] = name
            else:
                self.other_tensors.append(name)
        for module, names in self._factors.items():
            self._check(module, names)
        self.modules = sorted(self._factors)

    def shape(self, module: str) -> tuple[int, int]:
        """The (out, in) of a module's update."""
        names, tensors = self._factors[module], self._header.tensors
        return tensors[names["B"]].shape[0], tensors[names["A"]].shape[1]

    def rank(self, module: str) -> int:
        """The r of a module's factors."""
        return self._header.tensors[self._factors[module]["A"]].shape[0]

    def update(self, module: str) -> Update:
        """Read the factors of a module.

        Args:
            module: One of `modules`.

        Returns:
            Them, in float64, which holds the stored values exactly.
        """
        names = self._factors[module]
        return Update(self._matrix(names["A"]), self._matrix(names["B"]), self._scale(module))

    def _check(self, module: str, names: Mapping[str, str]) -> None:
        if names.keys() != {"A", "B"}:
            raise ArtifactError(f"lora_A and lora_B come in pairs, but {module} in {self._path} has only one of them")
        a, b = (self._header.tensors[names[half]].shape for half in "AB")
        if a[0] != b[1] or not a[0]:
            raise ArtifactError(f"lora_A is (r, in) and lora_B (out, r), but {module} in {self._path} has {a} and {b}")

    def _matrix(self, name: str) -> Matrix:
        shape = self._header.tensors[name].shape
        # A block is valid only until the next one is asked for.
        blocks = [block.astype(np.float64) for block in float32_blocks(self._path, self._header, name)]
        matrix = np.concatenate(blocks).reshape(shape) if blocks else np.zeros(shape)
        if not np.isfinite(matrix).all():
            raise ArtifactError(f"tensor {name!r} in {self._path} holds NaN or Inf; give another adapter")
        return matrix

    def _scale(self, module: str) -> float:
        rank = self.rank(module)
        alpha = _pattern_value(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", 8))
        try:
            return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        except (TypeError, ValueError):
            raise ArtifactError(f"lora_alpha is a number, got {alpha!r} in the configuration of {self._path}") from None


def _pattern_value(patterns: Any, module: str, default: Any) -> Any:
    if not isinstance(patterns, dict | None):
        raise ArtifactError(f"an adapter's alpha_pattern maps module names to numbers, got {str(patterns)[:80]!r}")
    # The rule of `peft.utils.other.get_pattern_key`: the first key that matches whole parts at the name's end.
    for key, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise ArtifactError(f"{key!r} in an adapter's alpha_pattern is no regular expression: {error}") from error
    return default
