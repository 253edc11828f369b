"""What the names of the tensors in an adapter's weights file say, and which tensors of the base they mean.

Source: `peft.utils.save_and_load.get_peft_model_state_dict`, which writes them without the adapter's name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from rankloom_registry.formats.safetensors import TensorSpan

PREFIX = "base_model.model."
EMBEDDINGS = frozenset({"embed_tokens", "embed_in", "tok_embeddings", "word_embeddings", "wte"})
HEADS = frozenset({"lm_head", "embed_out"})

Half = Literal["A", "B", "bias", "magnitude"]
_HALVES: dict[str, Half] = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_LORA = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _HALVES))})")
_WHOLE = re.compile(r"(.+)\.(weight|bias|trainable_tokens_delta)")
# What PEFT puts around a module: the parameter that is changed is the module's own.
_WRAPPERS = re.compile(r"\.(?:base_layer|modules_to_save|token_adapter)(?=\.|$)")

Shape = tuple[int, ...]
Pairs = dict[str, tuple[Shape | None, Shape | None]]  # module -> the shapes of A and B


class Lora(NamedTuple):
    """A tensor of a module's low-rank update: A is (r, in), B is (out, r), bias and magnitude are of size out."""

    module: str
    half: Half

    @property
    def is_matrix(self) -> bool:
        """Whether it is A or B."""
        return self.half in ("A", "B")


class Whole(NamedTuple):
    """A tensor that replaces, or adds rows to, one of the base's."""

    module: str
    leaf: str

    @property
    def embeds(self) -> bool:
        """Whether it is of the input embeddings or the output head."""
        return not (EMBEDDINGS | HEADS).isdisjoint(self.module.split("."))

    def is_bias(self, bias: object) -> bool:
        """Whether it is a bias that the field `bias` of the configuration lets train."""
        return self.leaf == "bias" and bias not in (None, "none")

    def within(self, modules: object) -> bool:
        """Whether it lies in one of the modules that `modules_to_save` names by the end of their path."""
        names = modules if isinstance(modules, Collection) and not isinstance(modules, str) else ()
        return any(f".{name}." in f".{self.module}." for name in names)


def parse_key(name: str) -> Lora | Whole | None:
    """Take the name of a tensor apart.

    Args:
        name: As it stands in `adapter_model.safetensors`.

    Returns:
        The module, with PEFT's prefix if it has one, and which part of it; None for a name that PEFT does not write.
    """
    if match := _LORA.fullmatch(name):
        return Lora(match[1], _HALVES[match[2]])
    if match := _WHOLE.fullmatch(name):
        return Whole(match[1], match[2])
    return None


def matrix_pairs(tensors: Mapping[str, TensorSpan]) -> Pairs:
    """The shapes of A and B of each module that has at least one of them."""
    halves: dict[str, dict[Half, Shape]] = {}
    for name, span in tensors.items():
        key = parse_key(name)
        if isinstance(key, Lora) and key.is_matrix:
            halves.setdefault(key.module, {})[key.half] = span.shape
    return {module: (pair.get("A"), pair.get("B")) for module, pair in halves.items()}


def base_tensor(parameter: str, names: Collection[str]) -> str | None:
    """Find the name that a base's checkpoint has for a parameter of the model.

    Args:
        parameter: Its name in the model, such as `transformer.h.0.attn.c_attn.weight`.
        names: The checkpoint's names; a set or a mapping.

    Returns:
        The name, or None if the checkpoint lacks the parameter.
    """
    # A checkpoint of the inner model (GPT-2's `h.0…`) lacks the first part of the parameter's name.
    return next((name for name in (parameter, parameter.partition(".")[2]) if name in names), None)


def changed_tensors(key: Lora | Whole, names: Collection[str], parameters: Collection[str] = ()) -> list[str]:
    """Find the tensors of a base that a tensor of an adapter changes.

    Args:
        key: As `parse_key` returned it.
        names: The names of the base's tensors; a set or a mapping.
        parameters: What low-rank updates may change besides `weight`: a mixture's experts, which `target_parameters`
            names, are parameters of one module, and the update's name is only that of the module.

    Returns:
        Their names; for an output head that the base does not hold, being tied to its embedding, the embedding;
        nothing if the tensor has no place in the base.
    """
    if not key.module.startswith(PREFIX):
        return []
    module = _WRAPPERS.sub("", key.module.removeprefix(PREFIX))
    match key:
        case Lora(half="bias") if base_tensor(f"{module}.bias", names) is None:
            leaves = ["weight"]  # the update adds a bias to what the weight gives
        case Lora(half="bias") | Whole(leaf="bias"):
            leaves = ["bias"]
        case Lora():
            leaves = ["weight", *parameters]
        case Whole():
            leaves = ["weight"]
    found = [name for leaf in leaves if (name := base_tensor(f"{module}.{leaf}", names)) is not None]
    if not found and leaves[0] == "weight" and module.rpartition(".")[2] in HEADS:
        return [name for name in names if _is_embedding(name)]
    return found


def _is_embedding(name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and module.rpartition(".")[2] in EMBEDDINGS
