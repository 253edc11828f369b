"""The base as Transformers builds it, without weights: what its parameters are, and where a checkpoint has them."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rankloom.config import QuantizationConfig
from rankloom.errors import MergeError, ModelError
from rankloom.models import load_model_config
from rankloom_registry.artifacts.keys import base_tensor


class Source(NamedTuple):
    """A tensor of a checkpoint, and the part of a model's parameter that it holds.

    Attributes:
        name: Its name in the checkpoint.
        expert: Which of a mixture's experts it is of; None where it holds all of the parameter.
        group: Which of the projections that are stacked in the parameter it is, such as gate before up.
    """

    name: str
    expert: int | None = None
    group: int = 0


@dataclass(frozen=True)
class Skeleton:
    """A model on the device 'meta'.

    Attributes:
        model: The model.
        names: The names of the tensors in its checkpoint.
    """

    model: Any
    names: Collection[str]

    def tied_with(self, parameter: str) -> list[str]:
        """Name the other parameters that share a parameter's weight, as embeddings and output head do."""
        pairs = self.model.all_tied_weights_keys.items()
        root = dict(pairs).get(parameter, parameter)
        group = {root} | {target for target, source in pairs if source == root}
        return sorted(group - {parameter}) if parameter in group else []

    def is_conv1d(self, module: str) -> bool:
        """Whether a module is GPT-2's `Conv1D`, whose weight is (in, out)."""
        return module in self.modules and type(self.modules[module]).__name__ == "Conv1D"

    def parameters_of(self, module: str) -> dict[str, tuple[int, ...]]:
        """The shapes of a module's own parameters, in the order in which it has them."""
        if module not in self.modules:
            return {}
        return {name: tuple(value.shape) for name, value in self.modules[module].named_parameters(recurse=False)}

    def keeps_in_out(self, module: str) -> bool:
        """Whether a mixture's experts are (experts, in, out), as gpt-oss has them, and not (experts, out, in)."""
        return bool(getattr(self.modules[module], "is_transposed", False))

    def sources(self, parameter: str) -> list[Source]:
        """Find the tensors that Transformers makes a parameter of when it loads the checkpoint.

        Returns:
            One that holds all of it, or one for each expert and projection; nothing if the checkpoint lacks it.

        Raises:
            MergeError: Transformers computes the parameter from them in another way than by stacking.
        """
        if name := base_tensor(parameter, self.names):
            return [Source(name)]
        found = self._sources.get(parameter, [])
        if all(converter is None for _, converter, _ in found):
            return [Source(name) for name, _, _ in found]
        converter = found[0][1]
        steps = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
        if steps not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
            raise MergeError(
                f"a parameter must be stored as it is, or as its experts one by one, but Transformers makes {parameter}"
                f" from {found[0][0]} by {', '.join(name for name, _ in steps)}; merge this adapter with PEFT"
            )
        return [
            Source(name, expert, group)
            for group, pattern in enumerate(converter.source_patterns)
            for expert, name in enumerate(_by_number(name for name, _, matched in found if matched == pattern))
        ]

    @cached_property
    def modules(self) -> dict[str, Any]:
        """The model's modules by their names."""
        return dict(self.model.named_modules())

    @cached_property
    def _sources(self) -> dict[str, list[tuple[str, Any, str | None]]]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        steps = get_model_conversion_mapping(self.model)
        renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        converters = [step for step in steps if isinstance(step, WeightConverter)]
        makes = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        state = self.model.state_dict()
        found: dict[str, list[tuple[str, Any, str | None]]] = {}
        for name in self.names:
            parameter, pattern = rename_source_key(name, renamings, converters, self.model.base_model_prefix, state)
            found.setdefault(parameter, []).append((name, makes.get(pattern or ""), pattern))
        return found


def _by_number(names: Any) -> list[str]:
    from transformers.core_model_loading import dot_natural_key

    return sorted(names, key=dot_natural_key)


def read_skeleton(folder: Path, names: Collection[str]) -> Skeleton:
    """Build the model of a folder without its weights.

    Args:
        folder: The base.
        names: The names of the tensors in its checkpoint.

    Raises:
        ModelError: Transformers has no causal language model of its kind.
    """
    return Skeleton(_meta_model(folder), names)


def quantized_modules(folder: Path, quantization: QuantizationConfig) -> list[str]:
    """Name the modules that bitsandbytes quantizes when a search loads this base, by letting it do so without weights.

    Args:
        folder: The base.
        quantization: How the search quantized it.
    """
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    from rankloom.training.resident import bitsandbytes_config

    model = _meta_model(folder)
    quantizer = AutoHfQuantizer.from_config(bitsandbytes_config(quantization, torch.float32), pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map={"": "cpu"})
    return [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]


def _meta_model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(load_model_config(folder))
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(f"{folder} is not a causal language model: {error}") from error
