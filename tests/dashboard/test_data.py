"""What the pages read."""

from __future__ import annotations

from pathlib import Path

from rankloom_dashboard import data
from rankloom_dashboard.launch import REGISTRY_VARIABLE
from rankloom_registry import Registry, SearchStarted


def test_what_lies_beside_a_registry_is_found_past_a_link_to_it(made, tmp_path: Path, monkeypatch) -> None:
    link = tmp_path / "elsewhere" / "link.duckdb"
    link.parent.mkdir()
    link.symlink_to(made.path)
    monkeypatch.setenv(REGISTRY_VARIABLE, str(link))
    assert data.registry_path() == Registry.open(link).path


def test_of_a_search_whose_folder_cannot_be_looked_at_the_record_is_what_is_known(made, monkeypatch) -> None:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(made.path))
    with Registry.open(made.path) as registry:
        known = registry.search(made.search_id)
        registry.record(
            SearchStarted(
                search_id="s-far",
                name="far",
                base_content_root=known.base_content_root,
                dataset={},
                config={"storage_path": f"/{'x' * 300}"},  # longer than a name can be
                metric="eval_loss",
                mode="min",
                num_samples=1,
                seed=0,
            )
        )
        assert data.status_now(registry.search("s-far")) == "running"
