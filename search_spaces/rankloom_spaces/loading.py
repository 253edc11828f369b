"""Where a search space comes from: a preset's name, a YAML file or a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from rankloom_spaces.errors import SpaceError
from rankloom_spaces.parameters import parse_parameter
from rankloom_spaces.space import SearchSpace
from rankloom_spaces.suggest import did_you_mean

_PRESETS = files("rankloom_spaces") / "presets"


class _Loader(yaml.SafeLoader):
    """Refuses a key written twice, where YAML would let the last one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is written twice", problem_mark=key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


def preset_names() -> list[str]:
    """Returns the names of the spaces that come with the package, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml"))


def load_space(source: str | Path | Mapping[str, Any] | SearchSpace) -> SearchSpace:
    """Loads and checks a search space.

    Args:
        source: A preset's name, the path of a `.yaml` or `.yml` file, a mapping of the same shape, or a space, which
            is returned as it is. A string that names a preset is never taken for a path.

    Returns:
        The space. A file without a `name` is named after itself, a mapping without one is `custom`.

    Raises:
        SpaceError: No such preset or file, no valid YAML, or a rule of the space is broken.
    """
    if isinstance(source, SearchSpace):
        return source
    if isinstance(source, Mapping):
        return _from_mapping(source, default_name="custom")
    if isinstance(source, str):
        presets = preset_names()
        if source in presets:
            return _from_text((_PRESETS / f"{source}.yaml").read_text(encoding="utf-8"), source)
        if Path(source).suffix not in (".yaml", ".yml"):
            raise SpaceError(
                f"no preset is called {source!r}{did_you_mean(source, presets)}; "
                f"the presets are {', '.join(presets)}; a file's name must end in .yaml or .yml"
            )
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(f"a space file must be readable UTF-8 text, got {path} ({error}); check the path") from error
    try:
        return _from_text(text, default_name=path.stem)
    except SpaceError as error:
        raise SpaceError(f"{path}: {error}") from error.__cause__


def _from_text(text: str, default_name: str) -> SearchSpace:
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SpaceError(f"a space must be valid YAML: {error}; correct the file") from error
    if not isinstance(data, Mapping):
        raise SpaceError(f"a space must be a mapping with `name` and `parameters`, got {data!r}; see the preset 'lora'")
    return _from_mapping(data, default_name)


def _from_mapping(data: Mapping[str, Any], default_name: str) -> SearchSpace:
    name = data.get("name", default_name)
    known = ("name", "parameters")
    for key in data:
        if key not in known:
            raise SpaceError(
                f"space {name!r}: unknown key {key!r}{did_you_mean(key, known)}; "
                "the keys are `name` and `parameters`, and every parameter stands under `parameters`"
            )
    raw = data.get("parameters")
    if not isinstance(raw, Mapping):
        raise SpaceError(f"space {name!r}: `parameters` must be a mapping, got {raw!r}; write one line a parameter")
    raw = dict(raw)
    rule: Any = "fixed"
    if isinstance(alpha := raw.get("lora_alpha"), Mapping) and "rule" in alpha:
        rule = alpha["rule"]
        raw["lora_alpha"] = {key: value for key, value in alpha.items() if key != "rule"}
    try:
        parameters = {key: parse_parameter(key, value) for key, value in raw.items()}
    except SpaceError as error:
        raise SpaceError(f"space {name!r}: {error}") from None
    return SearchSpace(name, parameters, rule)
