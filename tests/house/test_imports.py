"""What an import loads: a serving host reads the registry without torch, and `--help` answers at once."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

HEAVY = {"torch", "transformers", "ray", "streamlit"}
PRINT_LOADED = "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def loaded(run_python: Callable[..., str], code: str) -> set[str]:
    return set(json.loads(run_python("-c", code + PRINT_LOADED).splitlines()[-1]))


@pytest.mark.parametrize("package", ["rankloom", "rankloom_registry", "rankloom_spaces", "rankloom_dashboard"])
def test_import_loads_nothing_heavy(run_python: Callable[..., str], package: str) -> None:
    assert not loaded(run_python, f"import {package}") & HEAVY


def test_help_loads_nothing_heavy(run_python: Callable[..., str]) -> None:
    code = (
        "import contextlib, sys; sys.argv = ['rankloom', '--help']; from rankloom.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "pass"
    )
    modules = loaded(run_python, code)
    assert "typer" in modules
    assert not modules & HEAVY
