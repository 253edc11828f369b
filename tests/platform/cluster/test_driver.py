"""What the driver makes of a search's settings before anything is started."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler

from rankloom.cluster.driver import most_slots
from rankloom.config import parse_config


@pytest.mark.parametrize(
    ("settings", "lanes", "slots"),
    [
        ({"num_samples": 16}, 1, 6),
        ({"num_samples": 16}, 4, 2),
        ({"num_samples": 3, "scheduler": "median"}, 1, 2),
        ({"num_samples": 30, "scheduler": ASHAScheduler()}, 1, 10),
        ({"num_samples": 16, "scheduler": None}, 1, 16),
        ({"num_samples": 16, "scheduler": "fifo"}, 2, 16),
        ({"num_samples": 16, "scheduler": HyperBandScheduler()}, 1, 16),
        ({"num_samples": 16, "max_concurrent_trials": 5}, 1, 5),
        ({"num_samples": 4, "max_concurrent_trials": 5}, 1, 4),
    ],
)
def test_no_more_slots_than_a_search_can_use(settings: dict[str, Any], lanes: int, slots: int) -> None:
    config = parse_config({"model_name_or_path": "base", "dataset": "rows.jsonl", **settings})
    assert most_slots(config, lanes=lanes) == slots
