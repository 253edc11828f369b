"""The package stands on the ground floor: a host without torch, Ray or Optuna can read a space."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import rankloom_spaces

PROBE = """
import sys
import rankloom_spaces
rankloom_spaces.load_space("lora-wide").prior(576, "llama")
rankloom_spaces.resolve_target_modules("mlp", {"layers.0.mlp.fc1": "Linear"})
heavy = {"torch", "transformers", "peft", "ray", "optuna", "rankloom", "rankloom_registry", "rankloom_dashboard"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


def test_loading_a_space_imports_nothing_heavy_and_nothing_else_of_ours() -> None:
    root = Path(rankloom_spaces.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist_and_the_package_is_typed() -> None:
    assert all(hasattr(rankloom_spaces, name) for name in rankloom_spaces.__all__)
    assert (Path(rankloom_spaces.__file__).parent / "py.typed").exists()
