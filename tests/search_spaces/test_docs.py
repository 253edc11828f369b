"""The reference page says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from rankloom_spaces import PARAMETERS, load_space, preset_names, target_groups

PAGE = (Path(__file__).parents[2] / "docs" / "search-spaces.md").read_text(encoding="utf-8")


def test_the_example_loads() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert [load_space(yaml.safe_load(example)) for example in examples] == [load_space("lora")]


def test_every_parameter_stands_there_with_its_bounds() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE))
    assert {name: rows.get(name) for name in PARAMETERS} == {name: rule.allowed for name, rule in PARAMETERS.items()}


def test_every_preset_and_group_stands_there() -> None:
    assert all(f"\n| `{name}` |" in PAGE for name in [*preset_names(), *target_groups()])
