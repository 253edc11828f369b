"""What the driver makes of a search's settings before anything is started."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler

from rankloom.cluster.driver import check_lanes, most_slots
from rankloom.cluster.flight import LaneState
from rankloom.config import parse_config
from rankloom.errors import SearchError


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


def test_a_search_is_completed_only_when_every_lane_said_that_it_ended_well() -> None:
    done = LaneState(lane="lane-0", state="done")
    check_lanes([done])
    with pytest.raises(SearchError, match="^lane-1: the base changed; lane-2: its process died$"):
        check_lanes(
            [
                done,
                LaneState(lane="lane-1", state="failed", message="the base changed"),
                LaneState(lane="lane-2", state="ready", message="4 slots: measured", slots=4),
            ]
        )
