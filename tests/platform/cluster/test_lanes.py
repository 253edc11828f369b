"""How the lanes of a search are, and how many trials they train at once."""

from __future__ import annotations

from rankloom.cluster.flight import LaneState
from rankloom.cluster.lanes import Lanes


def test_lanes_are_known_before_they_come() -> None:
    lanes = Lanes(["lane-0"])
    assert lanes.states() == [LaneState(lane="lane-0", state="starting")]
    lanes.started("lane-0", 41)
    lanes.started("lane-0", 42)
    lanes.ready("lane-0", 4, "4 slots: measured")
    assert lanes.states() == [
        LaneState(lane="lane-0", state="ready", starts=2, pid=42, slots=4, message="4 slots: measured")
    ]


def test_a_lane_that_is_not_ready_is_taken_to_have_as_many_slots_as_the_largest_that_is() -> None:
    lanes = Lanes(["lane-0", "lane-1", "lane-2"])
    assert lanes.planned() == 0
    lanes.ready("lane-0", 4, "")
    assert lanes.planned() == 12
    lanes.ready("lane-1", 2, "")
    assert lanes.planned() == 10
    lanes.ended("lane-2", "no memory")
    assert lanes.planned() == 6
    lanes.ended("lane-0", "")
    assert lanes.planned() == 2


def test_the_first_reason_for_which_a_lane_failed_is_the_one_to_tell() -> None:
    lanes = Lanes(["lane-0", "lane-1"])
    lanes.ended("lane-0", "no memory")
    lanes.ended("lane-0", "")  # its trainer returns
    assert lanes.is_over("lane-0") and not lanes.all_over()
    lanes.ended("lane-1", "")
    assert lanes.all_over() and lanes.planned() == 0
    assert [(lane.state, lane.message) for lane in lanes.states()] == [("failed", "no memory"), ("done", "")]
