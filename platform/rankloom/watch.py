"""Who looks on while a search runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rankloom.config import SearchConfig, TrainingConfig
from rankloom_registry import Event

if TYPE_CHECKING:
    from rankloom.cluster.flight import LaneState, Progress


class Watcher(Protocol):
    """Who looks on while a search runs."""

    def say(self, message: str) -> None:
        """Tell what is being prepared."""

    def begin(self, name: str, config: SearchConfig, training: TrainingConfig) -> None:
        """Tell that trials begin."""

    def update(self, events: Sequence[Event], lanes: Sequence[LaneState], progress: Sequence[Progress]) -> None:
        """Tell what happened; called at least every second, from another thread."""


class Silence:
    """A watcher that shows nothing."""

    def say(self, message: str) -> None:
        """Show nothing."""

    def begin(self, name: str, config: SearchConfig, training: TrainingConfig) -> None:
        """Show nothing."""

    def update(self, events: Sequence[Event], lanes: Sequence[LaneState], progress: Sequence[Progress]) -> None:
        """Show nothing."""
