"""How long the devices of a search have worked: what its trials cost, however many of them shared a device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rankloom_registry import TrialSpan


@dataclass(frozen=True, slots=True)
class DeviceTime:
    """When lanes were busy.

    A lane holds one device, and all its slots train on it at once: the seconds of a lane count once, whether one trial
    was in hand or sixteen. The sum of the trials' own times would count a shared second once a trial. Seconds in which
    a lane loaded its base or waited for a trial do not count: no trial caused them.

    Attributes:
        busy: Intervals in which a lane had at least one trial in hand; those of one lane do not overlap.
    """

    busy: tuple[tuple[datetime, datetime], ...]

    def at(self, moment: datetime) -> float:
        """Returns the device-seconds that all lanes had spent by a moment."""
        return sum((min(ended, moment) - started).total_seconds() for started, ended in self.busy if started < moment)


def device_time(spans: Sequence[TrialSpan], until: datetime) -> DeviceTime:
    """Collects when the lanes of a search were busy.

    Args:
        spans: The attempts of its trials.
        until: The end of those that have not ended.
    """
    lanes: defaultdict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.started_at):
        started, ended = span.started_at, max(span.started_at, span.ended_at or until)
        intervals = lanes[span.lane]
        if intervals and started <= intervals[-1][1]:
            intervals[-1] = (intervals[-1][0], max(ended, intervals[-1][1]))
        else:
            intervals.append((started, ended))
    return DeviceTime(tuple(interval for intervals in lanes.values() for interval in intervals))
