from __future__ import annotations

import gzip
from pathlib import Path

import duckdb
import pytest

from rankloom_registry import AdapterAnnotated, AliasMoved, BaseFingerprint, BaseSeen, Registry, RegistryFormatError
from rankloom_registry.store.schema import MIGRATIONS

FILES = Path(__file__).parent / "data"
EARLIER = list(MIGRATIONS)[:-1]


@pytest.fixture
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A registry as the version that made this schema left it."""
    path = tmp_path / "registry.duckdb"
    path.write_bytes(gzip.decompress((FILES / f"{request.param}.duckdb.gz").read_bytes()))
    return path


def everything(path: Path) -> list[tuple[object, ...]]:
    """All tables and views, with their columns and types in order."""
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(
            "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal "
            "ORDER BY schema_name, table_name, column_index"
        ).fetchall()


def test_each_earlier_schema_has_its_file() -> None:
    assert {path.name for path in FILES.glob("*.duckdb.gz")} == {f"{name}.duckdb.gz" for name in EARLIER}


@pytest.mark.parametrize("old", EARLIER, indirect=True)
def test_a_registry_of_an_earlier_version_is_brought_up_to_date_when_asked(old: Path, base: BaseFingerprint) -> None:
    before = old.read_bytes()
    with pytest.raises(RegistryFormatError, match="older version"):
        Registry.open(old)
    assert old.read_bytes() == before
    registry = Registry.open(old, create=True)
    new = Registry.open(old.with_name("new.duckdb"), create=True)
    assert everything(old) == everything(new.path)
    assert Registry.open(old).path == old  # no second time

    best = registry.adapter("first@prod")
    assert [adapter.adapter_id for adapter in registry.adapters()] == ["adapter1", "adapter0"]
    assert (best.eval_loss, best.r, best.tags, best.note, best.update_norm) == (1.9, 16, (), "", None)
    assert (best.search_name, best.base_identity, best.aliases) == ("first", registry.bases()[0].identity, ("prod",))
    assert registry.adapter("adapter0").aliases == ()
    lineage = registry.lineage("adapter1")
    assert lineage.search is not None and lineage.trial is not None
    assert (lineage.search.name, lineage.trial.number) == ("first", 1)
    assert [promotion.reason for promotion in lineage.promotions] == ["best"]
    assert {event.kind: event.why for event in lineage.events}["promoted"] == "best"
    assert [move.adapter_id for move in registry.alias_history("first", "prod")] == ["adapter1"]
    assert [trial.slot for trial in registry.trials("s1")] == [None, None]
    assert [(span.number, span.lane, span.status) for span in registry.trial_spans("s1")] == [
        (0, "lane-0", "completed"),
        (1, "lane-0", "completed"),
    ]
    assert registry.base("c" * 64).sampled is None and registry.base_leaves("c" * 64) == {}

    assert len(registry.events()) == 14
    registry.record(
        BaseSeen(base=base, leaves={"w": "1" * 64}),
        AdapterAnnotated(adapter_id="adapter1", tags_added=("a",)),
        AliasMoved(name="first", alias="prod", adapter_id="adapter0"),
    )
    assert registry.base_leaves("c" * 64) == {"w": "1" * 64}
    assert registry.adapter("adapter1").tags == ("a",)
    assert registry.alias_history("first")[0].previous == "adapter1"
    assert (registry.adapter("adapter0").aliases, registry.adapter("adapter1").aliases) == (("prod",), ())


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, base: BaseFingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "registry.duckdb"
    Registry.open(path, create=True).record(BaseSeen(base=base))
    before = everything(path)
    broken = "CREATE TABLE store.half (a INTEGER); ALTER TABLE store.nothing ADD COLUMN b INTEGER"
    monkeypatch.setitem(MIGRATIONS, "9999-broken", broken)
    with pytest.raises(duckdb.Error, match="nothing"):
        Registry.open(path, create=True)
    monkeypatch.delitem(MIGRATIONS, "9999-broken")
    assert everything(path) == before
    assert len(Registry.open(path).bases()) == 1


def test_views_are_replaced_with_a_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "registry.duckdb"
    Registry.open(path, create=True)
    expected = everything(path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE OR REPLACE VIEW adapters AS SELECT 1 AS old")
    monkeypatch.setitem(MIGRATIONS, "9999-views", "")
    Registry.open(path, create=True)
    assert everything(path) == expected


def test_a_creation_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "registry.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE SCHEMA store; CREATE TABLE store.migrations (name VARCHAR PRIMARY KEY, applied_at TIMESTAMPTZ)"
        )
    registry = Registry.open(path, create=True)
    assert registry.adapters() == [] and registry.artifacts.root == tmp_path / "registry.artifacts"
