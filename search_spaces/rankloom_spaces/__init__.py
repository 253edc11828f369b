"""What can be searched: typed parameters, target-module groups and YAML presets, without torch or Ray."""

from __future__ import annotations

from rankloom_spaces.errors import SpaceError
from rankloom_spaces.loading import load_space, preset_names
from rankloom_spaces.parameters import Choice, Parameter, Range
from rankloom_spaces.rules import PARAMETERS
from rankloom_spaces.space import SearchSpace
from rankloom_spaces.targets import linear_module_names, resolve_target_modules, target_groups

__all__ = [
    "PARAMETERS",
    "Choice",
    "Parameter",
    "Range",
    "SearchSpace",
    "SpaceError",
    "linear_module_names",
    "load_space",
    "preset_names",
    "resolve_target_modules",
    "target_groups",
]
