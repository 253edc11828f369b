from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rankloom_spaces import load_space

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted([*EXAMPLES.rglob("*.yaml"), *EXAMPLES.rglob("*.yml")])


def test_there_are_examples() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_example_parses(path: Path) -> None:
    from rankloom import Search  # not at the top: it may bring Ray in, which the other tests here do without

    content = yaml.safe_load(path.read_text())
    if "parameters" in content:
        assert load_space(path).name == content["name"]
    else:
        assert Search.from_yaml(path).config.model_name_or_path == content["model_name_or_path"]
