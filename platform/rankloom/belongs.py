"""Whether an adapter belongs to a base: if not, which tensors differ, and which of them the adapter modifies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rankloom.models import BaseModel, resolve_base
from rankloom_registry import (
    Adapter,
    ArtifactError,
    BaseFingerprint,
    BaseRecord,
    Registry,
    read_base,
    touched_tensors,
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """A tensor that is not as it was recorded.

    Attributes:
        name: Its name.
        change: 'changed', 'missing' from the base at hand, or 'extra' there.
        touched: Whether the adapter modifies it; None if that is not known.
    """

    name: str
    change: Literal["changed", "missing", "extra"]
    touched: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseCheck:
    """What a check found.

    Attributes:
        adapter_id: The adapter.
        path: Where the base at hand lies.
        belongs: Whether its content is what the adapter was trained on.
        expected_content_root: The recorded base's.
        content_root: The base's at hand.
        tensors_known: Whether the recorded base is known tensor by tensor; if not, no change can be named.
        tensors: What differs, by name.
        touched: How many tensors the adapter modifies; None if that is not known.
        touched_root_agrees: Whether all of these are as they were recorded; None if that is not known.
        touched_unknown: Why it is not known.
        other_differences: What else is not as it was recorded, such as the tokenizer; it does not count against it.
    """

    adapter_id: str
    path: str
    belongs: bool
    expected_content_root: str
    content_root: str
    tensors_known: bool
    tensors: tuple[TensorChange, ...]
    touched: int | None
    touched_root_agrees: bool | None
    touched_unknown: str
    other_differences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the check as JSON-ready values."""
        return asdict(self)


def check_base(registry: Registry, ref: str, path: str, *, progress: Progress | None = None) -> BaseCheck:
    """Say whether an adapter belongs to a base.

    Args:
        registry: Where the adapter is registered.
        ref: The adapter: id, name or name@alias.
        path: The base: a folder, a .safetensors or .gguf file, or a hub id.
        progress: Called with the bytes of the base hashed so far and in all.

    Returns:
        What was found.

    Raises:
        RegistryError: There is no such adapter, or no model as safetensors at the path.
        ModelError: There is no base there.
    """
    adapter = registry.adapter(ref)
    recorded = registry.base(adapter.base_content_root)
    base = find_base(path)
    found, leaves = read_base(base.path, identity=base.identity, progress=progress)
    belongs = found.content_root == recorded.content_root
    expected = leaves if belongs else registry.base_leaves(recorded.content_root)
    touched, unknown = _touched(registry, adapter, expected)
    return BaseCheck(
        adapter_id=adapter.adapter_id,
        path=str(base.path),
        belongs=belongs,
        expected_content_root=recorded.content_root,
        content_root=found.content_root,
        tensors_known=bool(expected),
        tensors=_changes(expected, leaves, touched) if expected else (),
        touched=None if touched is None else len(touched),
        touched_root_agrees=None if touched is None else all(expected[name] == leaves.get(name) for name in touched),
        touched_unknown=unknown,
        other_differences=_other_differences(recorded, found),
    )


def find_base(path: str) -> BaseModel:
    """Return where a base lies: what is there as it is, a GGUF file dequantized, anything else as `resolve_base` does.

    Raises:
        ModelError: It is nothing of the kind.
    """
    local = Path(path).expanduser()
    if local.exists() and local.suffix != ".gguf":
        return BaseModel(path=local.absolute(), identity=str(local.absolute()))
    return resolve_base(path)


def _touched(registry: Registry, adapter: Adapter, names: Mapping[str, str]) -> tuple[set[str] | None, str]:
    """The tensors that an adapter modifies, or why that is not known."""
    if not names:
        return None, "its base was recorded before tensors were recorded one by one"
    try:
        return touched_tensors(registry.checkout(adapter), names), ""
    except ArtifactError as error:
        return None, str(error)


def _changes(
    expected: Mapping[str, str], leaves: Mapping[str, str], touched: set[str] | None
) -> tuple[TensorChange, ...]:
    changes = []
    for name in sorted(expected.keys() | leaves.keys()):
        if expected.get(name) != leaves.get(name):
            kind: Literal["changed", "missing", "extra"] = "changed"
            if name not in expected or name not in leaves:
                kind = "missing" if name in expected else "extra"
            changes.append(TensorChange(name=name, change=kind, touched=None if touched is None else name in touched))
    return tuple(changes)


def _other_differences(recorded: BaseRecord, found: BaseFingerprint) -> tuple[str, ...]:
    pairs = {
        "config.json": (recorded.config, found.config),
        "tokenizer": (recorded.tokenizer_sha256, found.tokenizer_sha256),
        "chat template": (recorded.chat_template_sha256, found.chat_template_sha256),
    }
    return tuple(name for name, (before, now) in pairs.items() if before != now)
