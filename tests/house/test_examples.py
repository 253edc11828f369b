from __future__ import annotations

import ast
import subprocess
import sys
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


def test_the_packed_script_runs_without_ray(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    check = (
        "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not [name for name in sys.modules if name.split('.')[0] == 'ray']"
    )
    script = str(EXAMPLES / "packed.py")
    code = f"import sys; sys.argv = {[script, str(tiny_model), str(rows_file)]!r}; {check}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(ast.literal_eval(done.stdout.splitlines()[-1])) == {"r4", "r8", "r16"}
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {"r4", "r8", "r16"}
