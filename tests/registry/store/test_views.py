from __future__ import annotations

from dataclasses import fields

import pytest

from rankloom_registry import (
    Adapter,
    AdapterAdded,
    BaseRecord,
    EvaluationRecord,
    EventRecord,
    PromotionRecord,
    Registry,
    SearchRecord,
    StepMetrics,
    TrialRecord,
)
from rankloom_registry.store.views import VIEWS

RECORDS = {
    "adapters": Adapter,
    "bases": BaseRecord,
    "evaluations": EvaluationRecord,
    "events": EventRecord,
    "promotions": PromotionRecord,
    "searches": SearchRecord,
    "step_metrics": StepMetrics,
    "trials": TrialRecord,
}


def columns(registry: Registry, table: str) -> set[str]:
    return {row["column_name"] for row in registry.sql(f"describe {table}")}


@pytest.mark.parametrize("view", RECORDS)
def test_a_view_has_the_columns_of_its_record(untouched: Registry, view: str) -> None:
    assert {field.name for field in fields(RECORDS[view])} <= columns(untouched, view)


def test_every_view_is_there(untouched: Registry) -> None:
    found = untouched.sql("select view_name from duckdb_views() where database_name = 'db' and not internal")
    assert {row["view_name"] for row in found} == set(VIEWS)


def test_a_view_has_a_row_for_each_row_of_its_table(searched: Registry) -> None:
    foreign = searched.adapter("first-0")
    searched.record(
        AdapterAdded(
            adapter_id="foreign",
            name="foreign",
            base_content_root=foreign.base_content_root,
            params={},
            metrics={},
            artifact_sha256="b" * 64,
        ),
        AdapterAdded(
            adapter_id="second",
            name="of-the-same-trial",
            trial_id=foreign.trial_id,
            base_content_root=foreign.base_content_root,
            params={},
            metrics={},
            artifact_sha256="b" * 64,
        ),
    )
    for view, record in RECORDS.items():
        assert record and len(searched.sql(f"from {view}")) == len(searched.sql(f"from store.{view}")), view
    assert searched.trials("first")[0].adapter_id == "second"
    assert searched.bases()[0].adapters == 6
