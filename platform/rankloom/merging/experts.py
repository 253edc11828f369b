"""Updates of parameters that are no module's `weight`, such as a mixture's experts (PEFT's `target_parameters`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rankloom.errors import MergeError
from rankloom.merging.changes import Change, LoraUpdate, require_fit
from rankloom.merging.lora import Lora
from rankloom.merging.skeleton import Skeleton, Source
from rankloom_registry.formats.safetensors import TensorSpan

WRAPPED = ".base_layer"
Shapes = Mapping[str, tuple[int, ...]]


class Halves(NamedTuple):
    """The names of the tensors that make up an update in the adapter."""

    lora_a: str
    lora_b: str


def targeted_parameters(module: str, lora: Lora, skeleton: Skeleton) -> list[str]:
    """Name the parameters of a module that `target_parameters` names, in the order in which the module has them."""
    targets = lora.target_parameters or []
    names = {name: f"{module}.{name}" for name in skeleton.parameters_of(module)}
    return [name for name, full in names.items() if any(f".{full}".endswith(f".{target}") for target in targets)]


def expert_changes(
    module: str, halves: Halves, lora: Lora, skeleton: Skeleton, tensors: Mapping[str, TensorSpan], shapes: Shapes
) -> dict[str, Change]:
    """Find the base tensors that one update of a parameter changes.

    Args:
        module: The module that has the parameter, with a `.base_layer` for each update around this one.
        halves: The update's A and B.
        lora: The adapter's configuration.
        skeleton: The base's model.
        tensors: The tensors of its checkpoint.
        shapes: Those of the adapter's tensors.

    Returns:
        The change of each base tensor. A checkpoint may hold the experts one by one, and gate and up apart.

    Raises:
        MergeError: The parameter is not stored in a way that can be taken apart, or shapes do not fit.

    Source:
        `peft.tuners.lora.layer.ParamWrapper`: the module's first targeted parameter is wrapped first, so its update
        is the innermost.
    """
    owner = module.replace(WRAPPED, "")
    targeted = targeted_parameters(owner, lora, skeleton)
    depth = module.count(WRAPPED)
    if depth >= len(targeted):
        raise MergeError(f"target_parameters must name each parameter that is updated, but not that of {module}")
    name = targeted[-1 - depth]
    parameter = f"{owner}.{name}"
    shape = skeleton.parameters_of(owner)[name]
    if len(shape) not in (2, 3):
        raise MergeError(f"target_parameters must name matrices or stacks of them, but {parameter} is {shape}")
    experts = shape[0] if len(shape) == 3 else 1
    transposed = len(shape) == 3 and skeleton.keeps_in_out(owner)
    matrix = shape[-2:][::-1] if transposed else shape[-2:]
    rank, scale = lora.rank(parameter), lora.scale(parameter)

    def update(expert: int, first_row: int = 0) -> LoraUpdate:
        return LoraUpdate(*halves, rank, scale, experts=experts, expert=expert, first_row=first_row)

    require_fit(update(0), parameter, matrix, shapes)
    sources = skeleton.sources(parameter)
    if len(sources) == 1 and sources[0].expert is None and tensors[sources[0].name].shape == shape:
        return {sources[0].name: Change(tuple(update(expert) for expert in range(experts)), transposed)}
    rows = {group: tensors[name].shape[0] for name, _, group in sources}
    found = sorted((source.group, source.expert) for source in sources if _is_matrix(source, tensors, matrix))
    whole = sum(rows.values()) == matrix[0] and found == [(g, e) for g in sorted(rows) for e in range(experts)]
    if transposed or not whole:
        raise MergeError(
            f"{parameter} {shape} must lie in the base as it is, or as the (out, in) weights of its {experts} experts, "
            f"but there it is {[source.name for source in sources][:3] or 'missing'}; merge this adapter with PEFT"
        )
    return {
        source.name: Change((update(source.expert or 0, sum(rows[group] for group in range(source.group))),))
        for source in sources
    }


def _is_matrix(source: Source, tensors: Mapping[str, TensorSpan], matrix: tuple[int, ...]) -> bool:
    shape = tensors[source.name].shape
    return source.expert is not None and len(shape) == 2 and shape[1] == matrix[1]
