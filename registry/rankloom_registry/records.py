"""What reading the registry gives: one frozen dataclass a view, with the view's columns as fields."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFingerprint:
    """What a base model is, apart from what it is called.

    Args:
        identity: Its label: hub id and commit, or the path it was read from. Never proof.
        structure: SHA-256 of tensor names, shapes and normalised configuration.
        content_root: SHA-256 over every tensor's name and content; equal for the same weights in other shards or
            upcast without loss.
        tensors: Number of tensors, a tied output head not counted.
        parameters: Number of elements in them.
        bytes: Size of their data on disk, in bytes.
        dtype: The dtype of most elements, spelled as torch does.
        tokenizer_sha256: Hash of the tokenizer's file, if there is one.
        chat_template_sha256: Hash of the chat template's text, if there is one.
        config: `config.json` without the keys that say nothing about the model's function.
        sampled: Hash of a few bytes of each tensor: a tripwire that takes milliseconds, never proof.
        quantization_sha256: Hash of the quantization's configuration; None in full precision.
    """

    identity: str
    structure: str
    content_root: str
    tensors: int
    parameters: int
    bytes: int
    dtype: str
    tokenizer_sha256: str | None
    chat_template_sha256: str | None
    config: dict[str, Any]
    sampled: str | None = None
    quantization_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecord:
    """A base model on which something was searched, evaluated or imported; `adapters` counts what belongs to it."""

    identity: str
    structure: str
    content_root: str
    tensors: int
    parameters: int
    bytes: int
    dtype: str
    tokenizer_sha256: str | None
    chat_template_sha256: str | None
    config: dict[str, Any]
    created_at: datetime
    adapters: int
    sampled: str | None = None
    quantization_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """A search; `best_value` is the best finite value of its metric among its trials."""

    search_id: str
    name: str
    status: str
    message: str
    base_content_root: str
    base_identity: str
    dataset: dict[str, Any]
    config: dict[str, Any]
    metric: str
    mode: str
    num_samples: int
    seed: int
    created_at: datetime
    ended_at: datetime | None
    trials: int
    finished_trials: int
    best_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """A trial; its metrics are the last ones reported. `wall_s` is in seconds, `peak_memory_bytes` in bytes.

    `slot` is the index of the slot of its lane that it took last; None where what trained it has no slots.
    """

    trial_id: str
    search_id: str
    number: int
    status: str
    params: dict[str, Any]
    message: str
    attempts: int
    lane: str
    slot: int | None = None
    eval_loss: float | None
    train_loss: float | None
    steps: int | None
    train_tokens: int | None
    peak_memory_bytes: int | None
    wall_s: float | None
    created_at: datetime
    ended_at: datetime | None
    adapter_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpan:
    """One attempt of a trial: which slot of which lane it held, and when.

    `status` is "completed", "stopped" or "failed" as the attempt ended; "running" while it does; or "interrupted" for
    one that was cut short: it was paused, its lane died, or the search ended. When exactly that was is not recorded:
    `ended_at` is then when the trial, its slot or the search is next heard of, and None while none of them is.
    `slot` is None where what trained it has no slots, and where it was recorded before slots were.
    """

    trial_id: str
    number: int
    attempt: int
    lane: str
    slot: int | None
    started_at: datetime
    ended_at: datetime | None
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What a trial reported at one step."""

    trial_id: str
    step: int
    epoch: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    train_tokens: int | None = None
    wall_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter: where it came from, how it was made, how good it is, and where its files are.

    `status` is "available", or "discarded" when its files were dropped; `artifact_path` is then None.
    `effective_rank` is the mean over its modules, `update_norm` the Frobenius norm of its whole update.
    """

    adapter_id: str
    name: str
    status: str
    search_id: str | None
    search_name: str | None
    trial_id: str | None
    trial_number: int | None
    base_identity: str
    base_content_root: str
    r: int | None
    lora_alpha: float | None
    use_rslora: bool | None
    lora_dropout: float | None
    learning_rate: float | None
    target_modules: str | None
    seed: int | None
    eval_loss: float | None
    train_loss: float | None
    steps: int | None
    train_tokens: int | None
    peak_memory_bytes: int | None
    wall_s: float | None
    effective_rank: float | None = None
    update_norm: float | None = None
    created_at: datetime
    artifact_path: Path | None
    artifact_sha256: str
    aliases: tuple[str, ...]
    tags: tuple[str, ...] = ()
    note: str = ""
    params: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """A measurement of an adapter, or of the base alone."""

    evaluation_id: str
    adapter_id: str | None
    base_content_root: str
    dataset: dict[str, Any]
    metrics: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRecord:
    """A promotion that was done, refused or undone, the outcome of each check, and the `name@alias` that it moved."""

    promotion_id: str
    adapter_id: str
    status: str
    recipe: str
    format: str
    output_path: str
    output_sha256: str
    checks: dict[str, Any]
    reason: str
    forced: bool
    alias: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRecord:
    """What `name@alias` means now, and since when."""

    name: str
    alias: str
    adapter_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """One move of `name@alias`: from the adapter that it meant, to the one that it meant from then on, or to none."""

    name: str
    alias: str
    previous: str | None
    adapter_id: str | None
    at: datetime
    who: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One recorded event, as it lies in the log: what happened, about what, when, on whose behalf, and why."""

    event_id: str
    kind: str
    subject: str
    at: datetime
    who: str
    why: str = ""
    payload: dict[str, Any]
