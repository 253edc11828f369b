"""How long the devices of a search have worked: what its trials cost, however many of them shared a device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from rankloom_registry import TrialSpan

_Seconds = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTime:
    """When lanes were busy.

    A lane holds one device, and all its slots train on it at once: the seconds of a lane count once, whether one trial
    was in hand or sixteen. The sum of the trials' own times would count a shared second once a trial. Seconds in which
    a lane loaded its base or waited for a trial do not count: no trial caused them.

    Attributes:
        origin: From when seconds are counted.
        started: When each interval began in which a lane had at least one trial in hand, in seconds from then; the
            intervals of one lane do not overlap.
        length: How long each of them was, in seconds.
    """

    origin: datetime
    started: _Seconds
    length: _Seconds

    def at(self, moment: datetime) -> float:
        """Returns the device-seconds that all lanes had spent by a moment."""
        passed = (moment - self.origin).total_seconds() - self.started
        return float(np.clip(passed, 0, self.length).sum())


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
    busy = [interval for intervals in lanes.values() for interval in intervals]
    origin = min((started for started, _ in busy), default=until)
    return DeviceTime(
        origin=origin,
        started=np.array([(started - origin).total_seconds() for started, _ in busy]),
        length=np.array([(ended - started).total_seconds() for started, ended in busy]),
    )
