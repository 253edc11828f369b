"""A registry of adapters in DuckDB: what was trained, on which weights, how good it is, and where its files are."""

from __future__ import annotations

from rankloom_registry.artifacts import ArtifactStore, check_against_base, check_folder
from rankloom_registry.bases.fingerprint import fingerprint_base, read_base, sample_base, tensor_leaves, touched_root
from rankloom_registry.curation import discard, move_alias, remove_alias
from rankloom_registry.errors import (
    AdapterNotFoundError,
    ArtifactError,
    ArtifactUnreachableError,
    BaseNotFoundError,
    EventError,
    FingerprintError,
    InvalidNameError,
    MissingPackageError,
    QueryError,
    RegistryBusyError,
    RegistryError,
    RegistryFormatError,
    RegistryNotFoundError,
    RegistryRecoveredWarning,
    RegistryWriteError,
    SearchNotFoundError,
    SignatureError,
)
from rankloom_registry.events.event import Event
from rankloom_registry.events.kinds import (
    AdapterAdded,
    AdapterAnnotated,
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
from rankloom_registry.formats.safetensors import SafetensorsHeader, TensorSpan, read_safetensors_header
from rankloom_registry.imports import Imported, import_adapter
from rankloom_registry.lineage import Lineage
from rankloom_registry.names import validate_name
from rankloom_registry.records import (
    Adapter,
    AliasMove,
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
from rankloom_registry.store.database import Rows
from rankloom_registry.store.recovery import RebuildReport
from rankloom_registry.weights.measures import AdapterWeights, ModuleWeights, read_weights
from rankloom_registry.weights.similarity import ModuleSimilarity, Similarity, compare_weights
from rankloom_registry.weights.touched import touched_tensors

__all__ = [
    "Adapter",
    "AdapterAdded",
    "AdapterAnnotated",
    "AdapterDiscarded",
    "AdapterNotFoundError",
    "AdapterWeights",
    "AliasMove",
    "AliasMoved",
    "AliasRecord",
    "ArtifactError",
    "ArtifactStore",
    "ArtifactUnreachableError",
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
    "Imported",
    "InvalidNameError",
    "Lineage",
    "MissingPackageError",
    "ModuleSimilarity",
    "ModuleWeights",
    "Promoted",
    "PromotionRecord",
    "QueryError",
    "RebuildReport",
    "Registry",
    "RegistryBusyError",
    "RegistryError",
    "RegistryFormatError",
    "RegistryNotFoundError",
    "RegistryRecoveredWarning",
    "RegistryWriteError",
    "Rows",
    "SafetensorsHeader",
    "SearchEnded",
    "SearchNotFoundError",
    "SearchRecord",
    "SearchResumed",
    "SearchStarted",
    "SignatureError",
    "Similarity",
    "StepMetrics",
    "TensorSpan",
    "TrialEnded",
    "TrialRecord",
    "TrialReported",
    "TrialStarted",
    "check_against_base",
    "check_folder",
    "compare_weights",
    "discard",
    "fingerprint_base",
    "import_adapter",
    "move_alias",
    "read_base",
    "read_safetensors_header",
    "read_weights",
    "remove_alias",
    "sample_base",
    "tensor_leaves",
    "touched_root",
    "touched_tensors",
    "validate_name",
]
