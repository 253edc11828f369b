"""Everything that can happen to a registry: its state is the fold of these events, in the order they were recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rankloom_registry.errors import EventError
from rankloom_registry.events.event import Event
from rankloom_registry.names import is_sha256, validate_name
from rankloom_registry.records import BaseFingerprint

SEARCH_ENDS = ("completed", "interrupted", "failed")
TRIAL_ENDS = ("completed", "stopped", "failed", "interrupted")
ADAPTER_STATES = ("available", "discarded")
PROMOTION_STATES = ("done", "refused")


@dataclass(frozen=True, kw_only=True)
class BaseSeen(Event):
    """A base model was fingerprinted; `leaves` are the hashes of its tensors, by name."""

    kind: ClassVar[str] = "base_seen"
    about: ClassVar[str] = "base.content_root"
    same: ClassVar[tuple[str, ...]] = ("base.content_root", "base.identity")
    base: BaseFingerprint
    leaves: Mapping[str, str] = field(default_factory=dict)

    def _key(self) -> Sequence[str]:
        # A base that was once recorded without its leaves can be recorded again with them.
        return [*super()._key(), *(["leaves"] if self.leaves else [])]


@dataclass(frozen=True, kw_only=True)
class _SearchEvent(Event):
    about: ClassVar[str] = "search_id"
    search_id: str

    def _check(self) -> None:
        validate_name(self.search_id)


@dataclass(frozen=True, kw_only=True)
class SearchStarted(_SearchEvent):
    """A search began on a base that `BaseSeen` has recorded."""

    kind: ClassVar[str] = "search_started"
    same: ClassVar[tuple[str, ...]] = ("search_id",)
    name: str
    base_content_root: str
    dataset: Mapping[str, Any]
    config: Mapping[str, Any]
    metric: str
    mode: str
    num_samples: int
    seed: int

    def _check(self) -> None:
        super()._check()
        validate_name(self.name)
        _require(self.mode, ("min", "max"), "mode")


@dataclass(frozen=True, kw_only=True)
class SearchResumed(_SearchEvent):
    """A search that had ended goes on."""

    kind: ClassVar[str] = "search_resumed"


@dataclass(frozen=True, kw_only=True)
class SearchExtended(_SearchEvent):
    """Trials were added to a search; `num_samples` is how many it has from then on."""

    kind: ClassVar[str] = "search_extended"
    same: ClassVar[tuple[str, ...]] = ("search_id", "num_samples")
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class SearchEnded(_SearchEvent):
    """A search ended; trials of it that still run are interrupted."""

    kind: ClassVar[str] = "search_ended"
    status: str
    message: str = ""

    def _check(self) -> None:
        super()._check()
        _require(self.status, SEARCH_ENDS, "a search's end")


@dataclass(frozen=True, kw_only=True)
class _TrialEvent(Event):
    about: ClassVar[str] = "trial_id"
    trial_id: str

    def _check(self) -> None:
        validate_name(self.trial_id)


@dataclass(frozen=True, kw_only=True)
class TrialStarted(_TrialEvent):
    """A trial began, or began again with a higher `attempt`; `params` is its resolved configuration.

    `slot` is the index of the slot of its lane that it took, where what trains it has slots.
    """

    kind: ClassVar[str] = "trial_started"
    same: ClassVar[tuple[str, ...]] = ("trial_id", "attempt")
    search_id: str
    number: int
    params: Mapping[str, Any]
    lane: str = ""
    attempt: int = 1
    slot: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrialReported(_TrialEvent):
    """A trial reported at a step; the keys of `metrics` are the fields of `StepMetrics`."""

    kind: ClassVar[str] = "trial_reported"
    same: ClassVar[tuple[str, ...]] = ("trial_id", "step")
    step: int
    metrics: Mapping[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class TrialEnded(_TrialEvent):
    """A trial's attempt ended; a metric that is missing keeps its last reported value."""

    kind: ClassVar[str] = "trial_ended"
    same: ClassVar[tuple[str, ...]] = ("trial_id", "attempt", "status")
    status: str
    metrics: Mapping[str, float | int | None] = field(default_factory=dict)
    message: str = ""
    attempt: int = 1

    def _check(self) -> None:
        super()._check()
        _require(self.status, TRIAL_ENDS, "a trial's end")


@dataclass(frozen=True, kw_only=True)
class _AdapterEvent(Event):
    about: ClassVar[str] = "adapter_id"
    adapter_id: str

    def _check(self) -> None:
        validate_name(self.adapter_id)


@dataclass(frozen=True, kw_only=True)
class AdapterAdded(_AdapterEvent):
    """An adapter was made by a trial, or imported; its files lie at `artifact_sha256` in the artifact store.

    `metrics` may also hold `effective_rank` and `update_norm`, as `AdapterWeights.summary` gives them.
    """

    kind: ClassVar[str] = "adapter_added"
    same: ClassVar[tuple[str, ...]] = ("adapter_id",)
    name: str
    trial_id: str | None = None
    base_content_root: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float | int | None]
    artifact_sha256: str
    status: str = "available"

    def _check(self) -> None:
        super()._check()
        validate_name(self.name)
        _require(self.status, ADAPTER_STATES, "an adapter's status")
        if not is_sha256(self.artifact_sha256) and (self.artifact_sha256 or self.status == "available"):
            raise EventError(
                f"an available adapter has the address that ArtifactStore.add returned; got {self.artifact_sha256!r}"
            )


@dataclass(frozen=True, kw_only=True)
class AdapterAnnotated(_AdapterEvent):
    """An adapter got another name or note, or gained or lost tags; what is None stays."""

    kind: ClassVar[str] = "adapter_annotated"
    name: str | None = None
    note: str | None = None
    tags_added: tuple[str, ...] = ()
    tags_removed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("tags_added", "tags_removed"):  # JSON holds them as lists
            tags = getattr(self, name)
            object.__setattr__(self, name, (tags,) if isinstance(tags, str) else tuple(tags))
        super().__post_init__()

    def _check(self) -> None:
        super()._check()
        for name in (*self.tags_added, *self.tags_removed, *([] if self.name is None else [self.name])):
            validate_name(name)
        if both := set(self.tags_added) & set(self.tags_removed):
            raise EventError(f"a tag is added or removed, not both at once; got {min(both)!r} twice")


@dataclass(frozen=True, kw_only=True)
class AdapterDiscarded(_AdapterEvent):
    """An adapter's files were dropped; what is known of it stays."""

    kind: ClassVar[str] = "adapter_discarded"
    same: ClassVar[tuple[str, ...]] = ("adapter_id",)
    reason: str


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """An adapter, or with no adapter the base alone, was measured on held-out data."""

    kind: ClassVar[str] = "evaluated"
    same: ClassVar[tuple[str, ...]] = ("evaluation_id",)
    evaluation_id: str
    adapter_id: str | None
    base_content_root: str
    dataset: Mapping[str, Any]
    metrics: Mapping[str, float | int | None]

    @property
    def subject(self) -> str:
        """The adapter, or without one the base."""
        return self.adapter_id or self.base_content_root


@dataclass(frozen=True, kw_only=True)
class Promoted(_AdapterEvent):
    """A promotion was done, or refused by one of its checks; `alias` is the `name@alias` that was moved with it."""

    kind: ClassVar[str] = "promoted"
    same: ClassVar[tuple[str, ...]] = ("promotion_id",)
    promotion_id: str
    status: str
    recipe: str
    format: str
    output_path: str
    output_sha256: str
    checks: Mapping[str, Any]
    reason: str = ""
    forced: bool = False
    alias: str | None = None

    def _check(self) -> None:
        super()._check()
        _require(self.status, PROMOTION_STATES, "a promotion's status")


@dataclass(frozen=True, kw_only=True)
class PromotionUndone(_AdapterEvent):
    """A promotion that was done counts no more; what it wrote is not touched, and its alias is moved by itself."""

    kind: ClassVar[str] = "promotion_undone"
    same: ClassVar[tuple[str, ...]] = ("promotion_id",)
    promotion_id: str


@dataclass(frozen=True, kw_only=True)
class AliasMoved(Event):
    """`name@alias` now means this adapter, or with no adapter nothing any more."""

    kind: ClassVar[str] = "alias_moved"
    name: str
    alias: str
    adapter_id: str | None

    def _check(self) -> None:
        validate_name(self.name)
        validate_name(self.alias)

    @property
    def subject(self) -> str:
        """The adapter, or without one the alias that is gone."""
        return self.adapter_id or f"{self.name}@{self.alias}"


def _require(value: str, allowed: tuple[str, ...], what: str) -> None:
    if value not in allowed:
        raise EventError(f"{what} is one of {', '.join(allowed)}; got {value!r}")
