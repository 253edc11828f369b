"""What the pages read."""

from __future__ import annotations

from pathlib import Path

from rankloom_dashboard import data
from rankloom_dashboard.launch import REGISTRY_VARIABLE
from rankloom_registry import Registry


def test_what_lies_beside_a_registry_is_found_past_a_link_to_it(made, tmp_path: Path, monkeypatch) -> None:
    link = tmp_path / "elsewhere" / "link.duckdb"
    link.parent.mkdir()
    link.symlink_to(made.path)
    monkeypatch.setenv(REGISTRY_VARIABLE, str(link))
    assert data.registry_path() == Registry.open(link).path
