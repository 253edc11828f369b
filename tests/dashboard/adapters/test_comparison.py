from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from rankloom_dashboard.adapters.comparison import (
    bases_differ,
    configuration_rows,
    labels,
    measured_rows,
    metric_rows,
)
from rankloom_dashboard.adapters.intervals import MeasuredLoss
from rankloom_registry import Adapter, Registry


@pytest.fixture
def pair(made_once) -> list[Adapter]:
    with Registry.open(made_once.path) as registry:
        return [registry.adapter(made_once.best), registry.adapter(made_once.second)]


def test_configuration_says_what_differs(pair) -> None:
    rows = {row.name: row for row in configuration_rows(pair)}
    assert {name for name, row in rows.items() if row.differs} == {
        "lora_dropout",
        "learning_rate",
        "seed",
        "lr_scheduler_type",
    }
    assert rows["learning_rate"].values == ("7.80e-4", "4.10e-4")
    assert rows["lr_scheduler_type"].values == ("cosine", "linear")
    assert rows["r"].values == ("32", "32")


def test_values_that_only_look_alike_still_differ(pair) -> None:
    close = replace(pair[0], learning_rate=7.800001e-4)
    row = next(row for row in configuration_rows([pair[0], close]) if row.name == "learning_rate")
    assert row.differs


def test_the_best_of_each_metric_is_marked_once_it_can_be_told(pair) -> None:
    rows = {row.name: row for row in metric_rows(pair)}
    assert rows["eval loss"].best == {0}
    assert rows["peak memory"].best == {1}
    assert rows["steps"].best == frozenset()
    close = metric_rows([pair[0], replace(pair[0], peak_memory_bytes=pair[0].peak_memory_bytes + 1)])
    assert all(row.best == frozenset() for row in close)
    alone = metric_rows([pair[0], replace(pair[1], eval_loss=None)])
    assert alone[0].best == frozenset()
    assert alone[0].values[1] == "–"


def test_bases_are_told_apart_by_content_and_not_by_name(pair) -> None:
    assert not bases_differ([pair[0], replace(pair[1], base_identity="renamed")])
    other = replace(pair[1], base_content_root="d1" * 32)
    assert bases_differ([pair[0], other])
    rows = {row.name: row for row in metric_rows([pair[0], other])}
    assert rows["eval loss"].best == frozenset()
    assert rows["peak memory"].best == {1}


def test_labels_are_never_the_same(pair) -> None:
    twins = [pair[0], replace(pair[1], name=pair[0].name)]
    assert len(set(labels(twins))) == 2
    assert labels(pair) == ["lora-tiny-5", "lora-tiny-2"]


def test_of_losses_on_two_bases_none_is_the_best() -> None:
    def measured(loss: float, base: str) -> dict[str, MeasuredLoss]:
        at = datetime(2026, 3, 2, tzinfo=UTC)
        return {"d": MeasuredLoss(base=base, dataset="d", key="d", rows=3, loss=loss, low=None, high=None, at=at)}

    (row,) = measured_rows([measured(2.0, "c0"), measured(3.0, "c0"), measured(4.0, "")])
    assert (row.best, row.differs) == ({0}, True)
    (row,) = measured_rows([measured(2.0, "c0"), measured(3.0, "d1")])
    assert (row.best, row.differs, row.values) == (frozenset(), True, ("2.0000", "3.0000"))


def test_what_is_no_number_is_not_the_best(pair) -> None:
    rows = {row.name: row for row in metric_rows([replace(pair[0], wall_s=math.nan), *pair])}
    assert rows["time"].values[0] == "–" and 0 not in rows["time"].best and rows["time"].best
