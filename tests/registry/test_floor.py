from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import rankloom_registry
from rankloom_registry import errors


def test_it_works_without_the_heavy_libraries(child_environment: dict[str, str]) -> None:
    script = """
import sys
for name in ("torch", "ray", "transformers", "peft", "pandas", "pyarrow", "streamlit"):
    sys.modules[name] = None  # importing it fails
import rankloom_registry
from rankloom_registry import Registry
registry = Registry.open(sys.argv[1], create=True)
assert registry.adapters(where="r < 8") == registry.sql("from adapters") == []
assert not [name for name in sys.modules if name.split(".")[0] in ("rankloom", "rankloom_spaces", "rankloom_dashboard")]
"""
    subprocess.run([sys.executable, "-c", script, "registry.duckdb"], check=True, env=child_environment, timeout=120)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))


def test_everything_named_is_there() -> None:
    assert sorted(rankloom_registry.__all__) == sorted(set(rankloom_registry.__all__))
    assert all(hasattr(rankloom_registry, name) for name in rankloom_registry.__all__)


def test_errors_are_standard_ones_and_survive_pickling() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and not issubclass(kind, Warning)]
    found = [kind for kind in kinds if kind is not errors.RegistryError]
    assert len(found) >= 12
    for kind in found:
        assert issubclass(kind, errors.RegistryError) and len(kind.__bases__) == 2
        assert issubclass(kind.__bases__[1], Exception) and kind.__bases__[1].__module__ == "builtins"
        back = pickle.loads(pickle.dumps(kind("what to do")))
        assert type(back) is kind and str(back) == "what to do"
