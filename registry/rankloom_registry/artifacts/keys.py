"""What the names of the tensors in an adapter's weights file say.

Source: `peft.utils.save_and_load.get_peft_model_state_dict`, which writes them without the adapter's name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from rankloom_registry.formats.safetensors import TensorSpan

PREFIX = "base_model.model."
EMBEDDINGS = frozenset({"embed_tokens", "embed_in", "wte", "word_embeddings"})
HEADS = frozenset({"lm_head", "embed_out"})

Half = Literal["A", "B", "out"]
_HALVES: dict[str, Half] = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_B.bias": "out",
    "lora_magnitude_vector": "out",
    "lora_magnitude_vector.weight": "out",
}
_LORA = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _HALVES))})")
_WHOLE = re.compile(r"(.+)\.(weight|bias|trainable_tokens_delta)")


Shape = tuple[int, ...]
Pairs = dict[str, tuple[Shape | None, Shape | None]]  # module -> the shapes of A and B


class Lora(NamedTuple):
    """A tensor of a module's low-rank update: A is (r, in), B is (out, r), and `out` is a vector of that size."""

    module: str
    half: Half


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
        if isinstance(key, Lora) and key.half != "out":
            halves.setdefault(key.module, {})[key.half] = span.shape
    return {module: (pair.get("A"), pair.get("B")) for module, pair in halves.items()}
