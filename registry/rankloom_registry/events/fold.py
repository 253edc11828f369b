"""Folds an event into the tables: the only way in which the state of a registry changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import singledispatch
from typing import Any

import duckdb

from rankloom_registry.errors import EventError
from rankloom_registry.events.event import Event
from rankloom_registry.events.kinds import (
    AdapterAdded,
    AdapterAnnotated,
    AdapterDiscarded,
    AliasMoved,
    BaseSeen,
    Evaluated,
    Promoted,
    PromotionUndone,
    SearchEnded,
    SearchExtended,
    SearchResumed,
    SearchStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from rankloom_registry.jsontext import encode

_TRIAL_METRICS = ("eval_loss", "train_loss", "steps", "train_tokens", "peak_memory_bytes", "wall_s")
_STEP_METRICS = ("epoch", "train_loss", "eval_loss", "learning_rate", "grad_norm", "train_tokens", "wall_s")
_WEIGHT_METRICS = ("effective_rank", "update_norm")
_PARAMS = ("r", "lora_alpha", "use_rslora", "lora_dropout", "learning_rate", "target_modules", "seed")


def append(connection: duckdb.DuckDBPyConnection, events: Sequence[Event]) -> dict[str, int]:
    """Append the events that are new to the log, and fold those.

    Args:
        connection: A connection in a transaction, whose default database is the registry's.
        events: Events in the order in which they happened.

    Returns:
        The numbers of those that were new, by event_id.
    """
    fresh: dict[str, Event] = {}
    for event in events:
        fresh.setdefault(event.event_id, event)
    inserted = connection.execute(
        """
        INSERT INTO store.events (sequence, event_id, kind, subject, "at", who, why, payload)
        SELECT (SELECT coalesce(max(sequence), 0) FROM store.events) + unnest(?), unnest(?), unnest(?), unnest(?),
            unnest(?)::TIMESTAMPTZ, unnest(?), unnest(?), unnest(?)::JSON
        ON CONFLICT DO NOTHING RETURNING event_id, sequence
        """,
        [
            list(range(1, len(fresh) + 1)),
            list(fresh),
            [event.kind for event in fresh.values()],
            [event.subject for event in fresh.values()],
            [event.at.isoformat() for event in fresh.values()],
            [event.who for event in fresh.values()],
            [event.reasoning for event in fresh.values()],
            [encode(event.payload) for event in fresh.values()],
        ],
    ).fetchall()
    new = dict(inserted)
    for event_id, event in fresh.items():
        if event_id in new:
            fold(event, connection)
    return new


@singledispatch
def fold(event: Event, connection: duckdb.DuckDBPyConnection) -> None:
    """Change the tables as the event says.

    Args:
        event: An event that the log did not hold.
        connection: A connection in a transaction, whose default database is the registry's.

    Raises:
        EventError: If it speaks of a search, trial, adapter or base that is not recorded.
    """
    raise EventError(f"an event is one of the kinds in rankloom_registry.events.kinds; got {type(event).__name__}")


@fold.register
def _(event: BaseSeen, connection: duckdb.DuckDBPyConnection) -> None:
    # The first label stays: a later look at a local copy would replace the hub id by a path.
    unknown = ", ".join(f"{name} = coalesce({name}, excluded.{name})" for name in ("sampled", "quantization_sha256"))
    again = f"ON CONFLICT (content_root) DO UPDATE SET {unknown}"
    _insert(connection, "bases", asdict(event.base) | {"created_at": event.at}, again)
    if event.leaves:
        connection.execute(
            "INSERT INTO store.base_tensors SELECT ?, unnest(?), unnest(?) ON CONFLICT DO NOTHING",
            [event.base.content_root, list(event.leaves), list(event.leaves.values())],
        )


@fold.register
def _(event: SearchStarted, connection: duckdb.DuckDBPyConnection) -> None:
    _require(connection, event, "bases", "content_root", event.base_content_root)
    row = event.payload | {"status": "running", "message": "", "created_at": event.at}
    _insert(connection, "searches", row)


@fold.register
def _(event: SearchResumed, connection: duckdb.DuckDBPyConnection) -> None:
    again = {"status": "running", "message": "", "ended_at": None}
    _change(connection, event, "searches", "search_id", event.search_id, again)


@fold.register
def _(event: SearchExtended, connection: duckdb.DuckDBPyConnection) -> None:
    _change(connection, event, "searches", "search_id", event.search_id, {"num_samples": event.num_samples})


@fold.register
def _(event: SearchEnded, connection: duckdb.DuckDBPyConnection) -> None:
    end = {"status": event.status, "message": event.message, "ended_at": event.at}
    _change(connection, event, "searches", "search_id", event.search_id, end)
    connection.execute(
        "UPDATE store.trials SET status = 'interrupted', ended_at = ? WHERE search_id = ? AND status = 'running'",
        [event.at, event.search_id],
    )


@fold.register
def _(event: TrialStarted, connection: duckdb.DuckDBPyConnection) -> None:
    _require(connection, event, "searches", "search_id", event.search_id)
    row = {
        "trial_id": event.trial_id,
        "search_id": event.search_id,
        "number": event.number,
        "status": "running",
        "params": event.params,
        "message": "",
        "attempts": event.attempt,
        "lane": event.lane,
        "slot": event.slot,
        "created_at": event.at,
    }
    again = (
        "ON CONFLICT (trial_id) DO UPDATE SET status = 'running', message = '', ended_at = NULL, lane = excluded.lane, "
        "slot = excluded.slot, params = excluded.params, attempts = greatest(attempts, excluded.attempts)"
    )
    _insert(connection, "trials", row, again)


@fold.register
def _(event: TrialReported, connection: duckdb.DuckDBPyConnection) -> None:
    _change(connection, event, "trials", "trial_id", event.trial_id, _latest(event.metrics) | {"steps": event.step})
    row = {"trial_id": event.trial_id, "step": event.step} | {name: event.metrics.get(name) for name in _STEP_METRICS}
    _insert(connection, "step_metrics", row)


@fold.register
def _(event: TrialEnded, connection: duckdb.DuckDBPyConnection) -> None:
    end = {"status": event.status, "message": event.message, "ended_at": event.at}
    _change(connection, event, "trials", "trial_id", event.trial_id, _latest(event.metrics) | end)


@fold.register
def _(event: AdapterAdded, connection: duckdb.DuckDBPyConnection) -> None:
    _require(connection, event, "bases", "content_root", event.base_content_root)
    query = "SELECT identity FROM store.bases WHERE content_root = ?"
    ((identity,),) = connection.execute(query, [event.base_content_root]).fetchall()
    origin: dict[str, Any] = {}
    if event.trial_id is not None:
        _require(connection, event, "trials", "trial_id", event.trial_id)
        query = """
            SELECT t.search_id, s.name, t.number FROM store.trials t JOIN store.searches s USING (search_id)
            WHERE t.trial_id = ?"""
        (found,) = connection.execute(query, [event.trial_id]).fetchall()
        origin = dict(zip(("search_id", "search_name", "trial_number"), found, strict=True))
    target = event.params.get("target_modules")
    query = "SELECT sequence FROM store.events WHERE event_id = ?"
    ((sequence,),) = connection.execute(query, [event.event_id]).fetchall()
    row = {
        "adapter_id": event.adapter_id,
        "sequence": sequence,
        "name": event.name,
        "status": event.status,
        "trial_id": event.trial_id,
        **origin,
        "base_content_root": event.base_content_root,
        "base_identity": identity,
        **{name: event.params.get(name) for name in _PARAMS},
        "target_modules": target if isinstance(target, str | None) else "+".join(target),
        **{name: event.metrics.get(name) for name in (*_TRIAL_METRICS, *_WEIGHT_METRICS)},
        "created_at": event.at,
        "artifact_sha256": event.artifact_sha256,
        "params": event.params,
    }
    _insert(connection, "adapters", row)


@fold.register
def _(event: AdapterAnnotated, connection: duckdb.DuckDBPyConnection) -> None:
    _require(connection, event, "adapters", "adapter_id", event.adapter_id)
    changes = _known({"name": event.name, "note": event.note})
    if event.tags_added or event.tags_removed:
        query = "SELECT tags FROM store.adapters WHERE adapter_id = ?"
        ((tags,),) = connection.execute(query, [event.adapter_id]).fetchall()
        changes["tags"] = sorted({*tags, *event.tags_added} - {*event.tags_removed})
    if changes:
        _change(connection, event, "adapters", "adapter_id", event.adapter_id, changes)


@fold.register
def _(event: AdapterDiscarded, connection: duckdb.DuckDBPyConnection) -> None:
    _change(connection, event, "adapters", "adapter_id", event.adapter_id, {"status": "discarded"})


@fold.register
def _(event: Evaluated, connection: duckdb.DuckDBPyConnection) -> None:
    _require(connection, event, "bases", "content_root", event.base_content_root)
    if event.adapter_id is not None:
        _require(connection, event, "adapters", "adapter_id", event.adapter_id)
    _insert(connection, "evaluations", event.payload | {"created_at": event.at})


@fold.register
def _(event: Promoted, connection: duckdb.DuckDBPyConnection) -> None:
    _require(connection, event, "adapters", "adapter_id", event.adapter_id)
    _insert(connection, "promotions", event.payload | {"created_at": event.at})


@fold.register
def _(event: PromotionUndone, connection: duckdb.DuckDBPyConnection) -> None:
    _change(connection, event, "promotions", "promotion_id", event.promotion_id, {"status": "undone"})


@fold.register
def _(event: AliasMoved, connection: duckdb.DuckDBPyConnection) -> None:
    if event.adapter_id is not None:
        _require(connection, event, "adapters", "adapter_id", event.adapter_id)
    key = [event.name, event.alias]
    before = connection.execute("SELECT adapter_id FROM store.aliases WHERE name = ? AND alias = ?", key).fetchall()
    # An alias that is gone keeps its row: DuckDB refuses to insert a key that the same transaction deleted.
    moved = "ON CONFLICT (name, alias) DO UPDATE SET adapter_id = excluded.adapter_id, created_at = excluded.created_at"
    _insert(connection, "aliases", event.payload | {"created_at": event.at}, moved)
    for adapter_id in {event.adapter_id, *(previous for (previous,) in before)} - {None}:
        query = "SELECT alias FROM store.aliases WHERE adapter_id = ? ORDER BY alias"
        aliases = [alias for (alias,) in connection.execute(query, [adapter_id]).fetchall()]
        _change(connection, event, "adapters", "adapter_id", adapter_id, {"aliases": aliases})


def _insert(connection: duckdb.DuckDBPyConnection, table: str, row: Mapping[str, Any], conflict: str = "") -> None:
    columns, marks = ", ".join(row), ", ".join("?" * len(row))
    values = [encode(value) if isinstance(value, Mapping) else value for value in row.values()]
    connection.execute(f"INSERT INTO store.{table} ({columns}) VALUES ({marks}) {conflict}", values)


def _change(
    connection: duckdb.DuckDBPyConnection, event: Event, table: str, column: str, key: str, changes: Mapping[str, Any]
) -> None:
    marks = ", ".join(f"{name} = ?" for name in changes)
    update = f"UPDATE store.{table} SET {marks} WHERE {column} = ?"
    ((changed,),) = connection.execute(update, [*changes.values(), key]).fetchall()
    if not changed:
        raise _unknown(event, column, key)


def _require(connection: duckdb.DuckDBPyConnection, event: Event, table: str, column: str, value: str) -> None:
    if not connection.execute(f"SELECT 1 FROM store.{table} WHERE {column} = ?", [value]).fetchall():
        raise _unknown(event, column, value)


def _unknown(event: Event, column: str, value: str) -> EventError:
    return EventError(
        f"{event.kind} speaks of {column} {value!r}, which the registry has not recorded; record that first"
    )


def _latest(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that a trial keeps: the last of each that was reported."""
    return _known({name: metrics.get(name) for name in _TRIAL_METRICS})


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
