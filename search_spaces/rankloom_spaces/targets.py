"""Target-module groups, resolved on the model at hand into the suffixes that PEFT matches.

A module belongs to attention or to the MLP by the folder it stands in (`self_attn`, `mlp`, ...), not by its own name,
because one name serves both in some families: GPT-2 has `attn.c_proj` and `mlp.c_proj`. Only names and class names
are read, so this works without torch, on a model's index as well as on a loaded, quantized model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rankloom_spaces.errors import SpaceError
from rankloom_spaces.suggest import did_you_mean

_GROUPS = ("attention-qv", "attention", "mlp", "all-linear")
_HEADS = frozenset({"lm_head", "embed_out", "score"})
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|expert|moe", re.IGNORECASE)
# OPT and its kin put these two straight into the layer.
_BARE_MLP = frozenset({"fc1", "fc2"})
# Separate query and value projections, then projections fused with others, which are trained whole.
_QUERY_VALUE = frozenset({"q_proj", "v_proj", "query", "value", "wq", "wv", "q_lin", "v_lin"}) | frozenset(
    {"query_key_value", "qkv_proj", "qkv", "c_attn", "Wqkv", "wqkv", "W_pack", "kv_proj", "q_b_proj", "kv_b_proj"}
)


def target_groups() -> list[str]:
    """Returns the names of the groups that `target_modules` takes beside module names."""
    return list(_GROUPS)


def split_target_choice(choice: str) -> list[str]:
    """Returns the groups and module names of a choice that is written with `+` between them."""
    return [part.strip() for part in choice.split("+")]


def linear_module_names(modules: Mapping[str, str]) -> list[str]:
    """Lists the linear modules an adapter can sit on, which are all but the output head.

    Args:
        modules: Class name by qualified module name, as `{n: type(m).__name__ for n, m in model.named_modules()}`.

    Returns:
        Qualified names, in the order of `modules`.
    """
    return [name for name, kind in modules.items() if _is_linear(kind) and _leaf(name) not in _HEADS]


def resolve_target_modules(choice: str | Sequence[str], modules: Mapping[str, str]) -> list[str]:
    """Turns groups and module names into PEFT's `target_modules` for the model at hand.

    `attention-qv` takes the query and value projections; where a model fuses them with the key
    (`query_key_value`, `c_attn`, `qkv_proj`) it takes the fused module, and so trains the key as well. `attention` and
    `mlp` take every linear module of that part; `all-linear` takes every linear module but the output head.

    Args:
        choice: A group, a module name or the end of one (`q_proj`, `attn.c_proj`), several joined by `+`, or a list.
        modules: Class name by qualified module name; at least all leaf modules of the model.

    Returns:
        Sorted suffixes, each the shortest that will do. By PEFT's rule, `name == t or name.endswith("." + t)`, each
        matches at least one module, and together they match exactly the modules that were meant.

    Raises:
        SpaceError: The model has no linear module that a part of the choice names.
    """
    linear = linear_module_names(modules)
    meant: set[str] = set()
    for part in split_target_choice(choice) if isinstance(choice, str) else choice:
        members = [name for name in linear if _belongs(name, part)]
        if not members:
            raise SpaceError(_missing(part, linear, modules))
        meant.update(members)
    # PEFT matches the names of containers too, and a container is no place for an adapter.
    every = {".".join(path[: end + 1]) for path in (name.split(".") for name in modules) for end in range(len(path))}
    others = {suffix for name in every - meant for suffix in _suffixes(name)}
    return sorted({_shortest(name, others) for name in meant})


def _shortest(name: str, others: set[str]) -> str:
    for suffix in _suffixes(name):
        if suffix not in others:
            return suffix
    raise SpaceError(
        f"PEFT cannot target {name!r} alone, another module's name ends in it; choose a group that holds both"
    )


def _suffixes(name: str) -> list[str]:
    path = name.split(".")
    return [".".join(path[start:]) for start in range(len(path) - 1, -1, -1)]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _is_linear(kind: str) -> bool:
    # By ending, so that GgufLinear, FalconLinear and other packed kinds count. The one of nn.MultiheadAttention does
    # not: its weight is read past its forward, and an adapter on it would train nothing.
    return kind in {"Linear4bit", "Linear8bitLt", "Conv1D"} or (
        kind.endswith("Linear") and kind != "NonDynamicallyQuantizableLinear"
    )


def _belongs(name: str, part: str) -> bool:
    if part == "all-linear":
        return True
    if part == "mlp":
        return _block(name) == "mlp"
    if part == "attention":
        return _block(name) == "attention"
    if part == "attention-qv":
        return _block(name) == "attention" and _leaf(name) in _QUERY_VALUE
    return name == part or name.endswith(f".{part}")


def _block(name: str) -> str | None:
    """Returns the part of the layer a module stands in, told by the nearest folder that says so."""
    *folders, leaf = name.split(".")
    for folder in reversed(folders):
        if _ATTENTION.search(folder):
            return "attention"
        if _MLP.search(folder):
            return "mlp"
    return "mlp" if leaf in _BARE_MLP else None


def _missing(part: str, linear: Sequence[str], modules: Mapping[str, str]) -> str:
    if part not in _GROUPS and any(_belongs(name, part) for name in modules):
        return f"{part!r} is not a linear module an adapter can sit on; choose from {_kinds(linear)}"
    near = did_you_mean(part, [*_GROUPS, *map(_leaf, linear)]) if part not in _GROUPS else ""
    return (
        f"the model has no linear module for {part!r}{near}; "
        f"it has {_kinds(linear)}; the groups are {', '.join(_GROUPS)}"
    )


def _kinds(linear: Sequence[str]) -> str:
    return ", ".join(sorted({_leaf(name) for name in linear})) or "no linear modules"
