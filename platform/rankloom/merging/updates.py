"""Which tensor of the base receives what from an adapter: found and checked before the first byte is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rankloom.errors import MergeError
from rankloom.merging.changes import Change, LoraUpdate, require_fit, require_float
from rankloom.merging.experts import WRAPPED, Halves, expert_changes, targeted_parameters
from rankloom.merging.lora import Lora, not_merged
from rankloom.merging.skeleton import Skeleton
from rankloom_registry.artifacts.keys import PREFIX, Whole, parse_key
from rankloom_registry.artifacts.place import CONFIG, WEIGHTS
from rankloom_registry.formats.safetensors import TensorSpan

# The name of a module's lengths depends on PEFT's version.
_UPDATE = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_(?:(A|B)\.weight|(magnitude)_vector(?:\.weight)?)")


def plan_changes(weights: Any, lora: Lora, skeleton: Skeleton, tensors: Mapping[str, TensorSpan]) -> dict[str, Change]:
    """Find what each tensor of an adapter changes in the base, and check shapes and values.

    Args:
        weights: The adapter's tensors, as `open_weights` returned them.
        lora: Its configuration.
        skeleton: The base's model.
        tensors: The tensors of its checkpoint.

    Returns:
        Names of base tensors to what each receives; no other one changes.

    Raises:
        MergeError: A tensor has no partner, no place in the base, the wrong shape, or is not finite.
    """
    shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    modules, saved = _sort(shapes, lora)
    changes: dict[str, Change] = {}
    for module, halves in modules.items():
        if targeted_parameters(module.replace(WRAPPED, ""), lora, skeleton):
            if lora.use_dora:
                raise not_merged(Path(CONFIG), "use_dora=True beside target_parameters", lora.target_parameters)
            found = expert_changes(module, Halves(halves["A"], halves["B"]), lora, skeleton, tensors, shapes)
        else:
            found = _linear_change(module, halves, lora, skeleton, tensors, shapes)
        _add(changes, found, tensors)
    for parameter, name in saved.items():
        _add(changes, _replacement(parameter, name, saved, weights, skeleton, tensors), tensors)
    if not modules:
        raise MergeError("the adapter must hold at least one lora_A and lora_B, got none; save it again")
    for name in shapes:
        tensor = weights.get_tensor(name)
        if not tensor.is_floating_point():
            raise MergeError(f"adapter weights must be floating-point, but {name} is {tensor.dtype}; save it again")
        if not tensor.float().isfinite().all():
            raise MergeError(f"adapter weights must be finite, but {name} holds NaN or Inf; promote another adapter")
    return changes


def with_quantized(
    changes: Mapping[str, Change], modules: list[str], skeleton: Skeleton, tensors: Mapping[str, TensorSpan]
) -> dict[str, Change]:
    """Add to a plan that the weights of some modules pass through 4 bits, also those that no adapter changes.

    Args:
        changes: The plan.
        modules: The modules that the search quantized.
        skeleton: The base's model.
        tensors: The tensors of its checkpoint.

    Raises:
        MergeError: A module's weight is not stored by itself, so its blocks of 4-bit values cannot be found.
    """
    planned = dict(changes)
    for module in modules:
        name = _stored(f"{module}.weight", skeleton, "only weights that are stored as the model has them")
        require_float(name, tensors[name])
        change = planned.get(name, Change())
        if change.replaced_by is None:
            planned[name] = replace(change, quantized=True, transposed=skeleton.is_conv1d(module))
    return planned


def _sort(names: Mapping[str, Any], lora: Lora) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Sort an adapter's tensors into the parts of each module's update, and the parameters saved whole."""
    modules: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    for name in sorted(names):
        key = parse_key(name)
        if match := _UPDATE.fullmatch(name):
            module, half = match[1], match[2] or match[3]
            if modules.setdefault(module, {}).setdefault(half, name) != name:
                raise MergeError(
                    f"an update must have each part once, but {name} is another {half} of {module}; save it again"
                )
        elif isinstance(key, Whole) and name.startswith(PREFIX) and _is_saved(key.module, lora.modules_to_save or []):
            saved[name.removeprefix(PREFIX)] = name
        else:
            raise not_merged(Path(WEIGHTS), "tensor", name)
    for module, halves in modules.items():
        for half in ("A", "B"):
            if half not in halves:
                missing = f"{PREFIX}{module}.lora_{half}.weight"
                raise MergeError(
                    f"lora_A and lora_B must come in pairs, but {missing} is missing; save the adapter again"
                )
        if lora.use_dora != ("magnitude" in halves):
            raise MergeError(
                f"an update must have a lora_magnitude_vector if use_dora is true, and only then, but use_dora is "
                f"{lora.use_dora} and {module} has {', '.join(halves.values())}; save the adapter again"
            )
    for wanted in lora.modules_to_save or []:
        if not any(_is_saved(parameter.rpartition(".")[0], [wanted]) for parameter in saved):
            raise MergeError(f"modules_to_save names {wanted!r}, but {WEIGHTS} lacks it; save the adapter again")
    return modules, saved


def _is_saved(module: str, names: list[str]) -> bool:
    # As PEFT has it: 'norm' is also the end of 'input_layernorm', and what lies in a saved module is saved.
    return any(f"{name}." in f"{module}." for name in names)


def _linear_change(
    module: str,
    halves: Mapping[str, str],
    lora: Lora,
    skeleton: Skeleton,
    tensors: Mapping[str, TensorSpan],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Change]:
    parameter = f"{module}.weight"
    if skeleton.tied_with(parameter):
        raise MergeError(
            f"an output head may be merged only where config.json says tie_word_embeddings=false: merging {module} "
            "would change the input embeddings too; keep it as an adapter"
        )
    name = _stored(parameter, skeleton, "the base must have each module of the adapter")
    require_float(name, tensors[name])
    # By class, as PEFT does: trained on a quantized base, an adapter of a Conv1D has fan_in_fan_out=False.
    transposed = skeleton.is_conv1d(module)
    magnitude = halves.get("magnitude")
    update = LoraUpdate(halves["A"], halves["B"], lora.rank(module), lora.scale(module), magnitude)
    shape = tensors[name].shape
    require_fit(update, name, shape[::-1] if transposed else shape, shapes)
    return {name: Change((update,), transposed)}


def _stored(parameter: str, skeleton: Skeleton, rule: str) -> str:
    """The tensor of the checkpoint that is a parameter."""
    sources = skeleton.sources(parameter) if parameter.rpartition(".")[0] in skeleton.modules else []
    if len(sources) != 1 or sources[0].expert is not None:
        found = f"it has {len(sources)} tensors for" if sources else "not"
        raise MergeError(f"{rule}, but {found} {parameter}; give the adapter's base")
    return sources[0].name


def _replacement(
    parameter: str,
    name: str,
    saved: Mapping[str, str],
    weights: Any,
    skeleton: Skeleton,
    tensors: Mapping[str, TensorSpan],
) -> dict[str, Change]:
    """The change of a parameter that the adapter holds whole (`modules_to_save`)."""
    for twin in skeleton.tied_with(parameter):
        if twin not in saved or not torch.equal(weights.get_tensor(saved[twin]), weights.get_tensor(name)):
            raise MergeError(
                f"embeddings and output head are one tensor in this base (tie_word_embeddings), but the adapter saves "
                f"{parameter} and not the same as {twin}; keep it as an adapter"
            )
        if not skeleton.sources(parameter):
            return {}  # stored once, under the twin's name
    target = _stored(parameter, skeleton, "the base must have each module that is saved whole")
    require_float(target, tensors[target])
    shape = tuple(weights.get_slice(name).get_shape())
    if shape != tensors[target].shape:
        raise MergeError(
            f"a module saved whole must have the base's shape, but {name} is {shape} and {target} "
            f"{tensors[target].shape}; keep it as an adapter"
        )
    return {target: Change(replaced_by=name)}


def _add(changes: dict[str, Change], found: Mapping[str, Change], tensors: Mapping[str, TensorSpan]) -> None:
    for name, change in found.items():
        require_float(name, tensors[name])
        if name in changes:
            raise MergeError(f"a weight takes one update, but two modules of the adapter target {name}; merge one")
        changes[name] = change
