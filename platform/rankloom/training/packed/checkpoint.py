"""A trial's state on disk: one safetensors file, replaced whole, from which another process goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from rankloom_registry.files import write_atomically

State = tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]


def write_state(file: Path, state: State) -> None:
    """Write tensors and their record."""
    tensors, record = state
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, save(dict(tensors), metadata={"record": json.dumps(record)}))


def read_state(file: Path) -> State:
    """Return what `write_state` wrote."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        return tensors, json.loads(opened.metadata()["record"])
