"""A registry of adapters in DuckDB: what was trained, on which weights, how good it is, and where its files are."""

from __future__ import annotations

from rankloom_registry.artifacts import ArtifactStore
from rankloom_registry.database import Rows
from rankloom_registry.errors import (
    AdapterNotFoundError,
    ArtifactError,
    BaseNotFoundError,
    EventError,
    FingerprintError,
    InvalidNameError,
    QueryError,
    RegistryBusyError,
    RegistryError,
    RegistryFormatError,
    RegistryNotFoundError,
    RegistryWriteError,
    SearchNotFoundError,
)
from rankloom_registry.event import Event
from rankloom_registry.events import (
    AdapterAdded,
    AdapterDiscarded,
    AliasMoved,
    BaseSeen,
    Evaluated,
    Promoted,
    SearchEnded,
    SearchResumed,
    SearchStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from rankloom_registry.fingerprint import fingerprint_base, tensor_leaves
from rankloom_registry.names import validate_name
from rankloom_registry.records import (
    Adapter,
    AliasRecord,
    BaseFingerprint,
    BaseRecord,
    EvaluationRecord,
    EventRecord,
    PromotionRecord,
    SearchRecord,
    StepMetrics,
    TrialRecord,
)
from rankloom_registry.registry import Registry
from rankloom_registry.safetensors import SafetensorsHeader, TensorSpan, read_safetensors_header

__all__ = [
    "Adapter",
    "AdapterAdded",
    "AdapterDiscarded",
    "AdapterNotFoundError",
    "AliasMoved",
    "AliasRecord",
    "ArtifactError",
    "ArtifactStore",
    "BaseFingerprint",
    "BaseNotFoundError",
    "BaseRecord",
    "BaseSeen",
    "Evaluated",
    "EvaluationRecord",
    "Event",
    "EventError",
    "EventRecord",
    "FingerprintError",
    "InvalidNameError",
    "Promoted",
    "PromotionRecord",
    "QueryError",
    "Registry",
    "RegistryBusyError",
    "RegistryError",
    "RegistryFormatError",
    "RegistryNotFoundError",
    "RegistryWriteError",
    "Rows",
    "SafetensorsHeader",
    "SearchEnded",
    "SearchNotFoundError",
    "SearchRecord",
    "SearchResumed",
    "SearchStarted",
    "StepMetrics",
    "TensorSpan",
    "TrialEnded",
    "TrialRecord",
    "TrialReported",
    "TrialStarted",
    "fingerprint_base",
    "read_safetensors_header",
    "tensor_leaves",
    "validate_name",
]
