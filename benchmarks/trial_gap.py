"""How long a lane stands idle between two trials, read from a registry that a search filled.

Usage: python benchmarks/trial_gap.py REGISTRY SEARCH
Prints one JSON document: the gaps in seconds between a trial's end and the next one's start on the same lane, and their
share of the lane's time. A trainer per trial would pay its start-up (tens of seconds) in each of these gaps.
"""

from __future__ import annotations

import json
import statistics
import sys
from itertools import pairwise

from rankloom_registry import Registry, TrialRecord


def main(registry: str, search: str) -> None:
    with Registry.open(registry) as opened:
        trials = [trial for trial in opened.trials(search) if trial.ended_at is not None]
    lanes: dict[str, list[TrialRecord]] = {}
    for trial in sorted(trials, key=lambda trial: trial.created_at):
        lanes.setdefault(trial.lane, []).append(trial)
    gaps = [
        (after.created_at - before.ended_at).total_seconds()
        for lane in lanes.values()
        for before, after in pairwise(lane)
        if before.ended_at is not None
    ]
    busy = sum((trial.ended_at - trial.created_at).total_seconds() for trial in trials if trial.ended_at)
    if not gaps:
        sys.exit(f"search {search!r} has no two ended trials on one lane: nothing to measure")
    print(
        json.dumps(
            {
                "trials": len(trials),
                "gaps": len(gaps),
                "median_s": round(statistics.median(gaps), 3),
                "max_s": round(max(gaps), 3),
                "share_of_lane_time": round(sum(gaps) / (busy + sum(gaps)), 5),
            }
        )
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/trial_gap.py REGISTRY SEARCH")
    main(*sys.argv[1:])
