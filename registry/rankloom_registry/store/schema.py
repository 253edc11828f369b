"""The tables of a registry, as named migrations that run once, in order, each in its own transaction.

A migration that was ever released stays as it is. The views that 0001 made are replaced by those of `views.py`, which
come with the last migration: a version that changes views only adds a migration without a statement.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from rankloom_registry.errors import RegistryFormatError
from rankloom_registry.store import views

# No index beyond the primary keys: DuckDB's replay of a write-ahead log is weakest there. What is filtered and sorted
# is a typed column; JSON holds the rest. The views are what readers and users see.
_FIRST = """
CREATE TABLE store.settings (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);

CREATE TABLE store.events (
    sequence BIGINT NOT NULL, event_id VARCHAR PRIMARY KEY, kind VARCHAR NOT NULL, subject VARCHAR NOT NULL,
    "at" TIMESTAMPTZ NOT NULL, who VARCHAR NOT NULL, payload JSON NOT NULL);

CREATE TABLE store.bases (
    content_root VARCHAR PRIMARY KEY, identity VARCHAR NOT NULL, structure VARCHAR NOT NULL, tensors INTEGER NOT NULL,
    parameters BIGINT NOT NULL, bytes BIGINT NOT NULL, dtype VARCHAR NOT NULL, tokenizer_sha256 VARCHAR,
    chat_template_sha256 VARCHAR, config JSON NOT NULL, created_at TIMESTAMPTZ NOT NULL);

CREATE TABLE store.searches (
    search_id VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, status VARCHAR NOT NULL, message VARCHAR NOT NULL,
    base_content_root VARCHAR NOT NULL, dataset JSON NOT NULL, config JSON NOT NULL, metric VARCHAR NOT NULL,
    mode VARCHAR NOT NULL, num_samples INTEGER NOT NULL, seed BIGINT NOT NULL, created_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ);

CREATE TABLE store.trials (
    trial_id VARCHAR PRIMARY KEY, search_id VARCHAR NOT NULL, number INTEGER NOT NULL, status VARCHAR NOT NULL,
    params JSON NOT NULL, message VARCHAR NOT NULL, attempts INTEGER NOT NULL, lane VARCHAR NOT NULL,
    eval_loss DOUBLE, train_loss DOUBLE, steps INTEGER, train_tokens BIGINT, peak_memory_bytes BIGINT, wall_s DOUBLE,
    created_at TIMESTAMPTZ NOT NULL, ended_at TIMESTAMPTZ);

CREATE TABLE store.step_metrics (
    trial_id VARCHAR NOT NULL, step INTEGER NOT NULL, epoch DOUBLE, train_loss DOUBLE, eval_loss DOUBLE,
    learning_rate DOUBLE, grad_norm DOUBLE, train_tokens BIGINT, wall_s DOUBLE);

CREATE TABLE store.adapters (
    adapter_id VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, status VARCHAR NOT NULL, trial_id VARCHAR,
    base_content_root VARCHAR NOT NULL, r INTEGER, lora_alpha DOUBLE, use_rslora BOOLEAN, lora_dropout DOUBLE,
    learning_rate DOUBLE, target_modules VARCHAR, seed BIGINT, eval_loss DOUBLE, train_loss DOUBLE, steps INTEGER,
    train_tokens BIGINT, peak_memory_bytes BIGINT, wall_s DOUBLE, created_at TIMESTAMPTZ NOT NULL,
    artifact_sha256 VARCHAR NOT NULL, params JSON NOT NULL);

CREATE TABLE store.evaluations (
    evaluation_id VARCHAR PRIMARY KEY, adapter_id VARCHAR, base_content_root VARCHAR NOT NULL, dataset JSON NOT NULL,
    metrics JSON NOT NULL, created_at TIMESTAMPTZ NOT NULL);

CREATE TABLE store.promotions (
    promotion_id VARCHAR PRIMARY KEY, adapter_id VARCHAR NOT NULL, status VARCHAR NOT NULL, recipe VARCHAR NOT NULL,
    format VARCHAR NOT NULL, output_path VARCHAR NOT NULL, output_sha256 VARCHAR NOT NULL, checks JSON NOT NULL,
    reason VARCHAR NOT NULL, forced BOOLEAN NOT NULL, created_at TIMESTAMPTZ NOT NULL);

CREATE TABLE store.aliases (
    name VARCHAR NOT NULL, alias VARCHAR NOT NULL, adapter_id VARCHAR, created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (name, alias));

CREATE VIEW events AS FROM store.events;
CREATE VIEW step_metrics AS FROM store.step_metrics;
CREATE VIEW evaluations AS FROM store.evaluations;
CREATE VIEW promotions AS FROM store.promotions;
CREATE VIEW aliases AS FROM store.aliases WHERE adapter_id IS NOT NULL;

CREATE VIEW bases AS
SELECT b.*, (SELECT count(*)::INTEGER FROM store.adapters a WHERE a.base_content_root = b.content_root) AS adapters
FROM store.bases b;

CREATE VIEW trials AS
SELECT t.*, (SELECT max(a.adapter_id) FROM store.adapters a WHERE a.trial_id = t.trial_id) AS adapter_id
FROM store.trials t;

CREATE VIEW searches AS
WITH summary AS (
    SELECT t.search_id, count(*)::INTEGER AS trials,
        count(*) FILTER (WHERE t.status IN ('completed', 'stopped', 'failed'))::INTEGER AS finished_trials,
        min(value) FILTER (WHERE isfinite(value)) AS lowest, max(value) FILTER (WHERE isfinite(value)) AS highest
    FROM (
        SELECT t.search_id, t.status,
            CASE s.metric WHEN 'eval_loss' THEN t.eval_loss WHEN 'train_loss' THEN t.train_loss END AS value
        FROM store.trials t JOIN store.searches s USING (search_id)) t
    GROUP BY t.search_id)
SELECT s.*, b.identity AS base_identity, coalesce(m.trials, 0) AS trials,
    coalesce(m.finished_trials, 0) AS finished_trials,
    CASE s.mode WHEN 'min' THEN m.lowest ELSE m.highest END AS best_value
FROM store.searches s
JOIN store.bases b ON b.content_root = s.base_content_root
LEFT JOIN summary m USING (search_id);

CREATE VIEW adapters AS
SELECT a.adapter_id, a.name, a.status, s.search_id, s.name AS search_name, a.trial_id, t.number AS trial_number,
    b.identity AS base_identity, a.base_content_root, a.r, a.lora_alpha, a.use_rslora, a.lora_dropout, a.learning_rate,
    a.target_modules, a.seed, a.eval_loss, a.train_loss, a.steps, a.train_tokens, a.peak_memory_bytes, a.wall_s,
    a.created_at,
    CASE a.status WHEN 'available' THEN
        (SELECT value FROM store.settings WHERE key = 'artifacts') || '/sha256/' || a.artifact_sha256[1:2] || '/'
        || a.artifact_sha256
    END AS artifact_path,
    a.artifact_sha256,
    coalesce(
        (SELECT list(l.alias ORDER BY l.alias) FROM store.aliases l WHERE l.adapter_id = a.adapter_id), []) AS aliases,
    a.params
FROM store.adapters a
JOIN store.bases b ON b.content_root = a.base_content_root
LEFT JOIN store.trials t ON t.trial_id = a.trial_id
LEFT JOIN store.searches s ON s.search_id = t.search_id;
"""

_RECORDS = """
ALTER TABLE store.events ADD COLUMN why VARCHAR DEFAULT '';
UPDATE store.events SET why = coalesce(payload->>'$.reason', '') WHERE kind IN ('adapter_discarded', 'promoted');

ALTER TABLE store.adapters ADD COLUMN tags VARCHAR[] DEFAULT [];
ALTER TABLE store.adapters ADD COLUMN note VARCHAR DEFAULT '';
ALTER TABLE store.adapters ADD COLUMN effective_rank DOUBLE;
ALTER TABLE store.adapters ADD COLUMN update_norm DOUBLE;

ALTER TABLE store.bases ADD COLUMN sampled VARCHAR;
ALTER TABLE store.bases ADD COLUMN quantization_sha256 VARCHAR;

CREATE TABLE store.base_tensors (
    content_root VARCHAR NOT NULL, name VARCHAR NOT NULL, leaf VARCHAR NOT NULL, PRIMARY KEY (content_root, name));
"""

# Which search an adapter came from never changes; from a million trials it would be joined for the sake of 20 adapters.
_ORIGINS = """
ALTER TABLE store.adapters ADD COLUMN search_id VARCHAR;
ALTER TABLE store.adapters ADD COLUMN trial_number INTEGER;
UPDATE store.adapters a SET search_id = t.search_id, trial_number = t.number
FROM store.trials t WHERE t.trial_id = a.trial_id;
"""

# What a leaderboard shows of an adapter stands in its row: to plan joins took longer than to find the rows. And of two
# as good and as old, the one recorded first comes first: to compare ids would mean to read a million.
_LABELS = """
ALTER TABLE store.adapters ADD COLUMN sequence BIGINT;
ALTER TABLE store.promotions ADD COLUMN alias VARCHAR;
ALTER TABLE store.adapters ADD COLUMN search_name VARCHAR;
ALTER TABLE store.adapters ADD COLUMN base_identity VARCHAR;
ALTER TABLE store.adapters ADD COLUMN aliases VARCHAR[] DEFAULT [];
UPDATE store.adapters a SET sequence = e.sequence
FROM store.events e WHERE e.kind = 'adapter_added' AND e.subject = a.adapter_id;
UPDATE store.adapters a SET search_name = s.name FROM store.searches s WHERE s.search_id = a.search_id;
UPDATE store.adapters a SET base_identity = b.identity FROM store.bases b WHERE b.content_root = a.base_content_root;
UPDATE store.adapters a SET aliases = l.aliases
FROM (SELECT adapter_id, list(alias ORDER BY alias) AS aliases FROM store.aliases GROUP BY adapter_id) l
WHERE l.adapter_id = a.adapter_id;
"""

_SLOTS = """
ALTER TABLE store.trials ADD COLUMN slot INTEGER;
"""

MIGRATIONS: dict[str, str] = {
    "0001-first": _FIRST,
    "0002-records": _RECORDS,
    "0003-origins": _ORIGINS,
    "0004-labels": _LABELS,
    "0005-slots": _SLOTS,
}


def applied(connection: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    """Name the migrations that the attached file has had, in order.

    Args:
        connection: A connection whose default database is the file's.
        path: The file, for the message.

    Returns:
        The names; none for a database without any table.

    Raises:
        RegistryFormatError: If the database is not a registry, or a newer one.
    """
    tables = connection.execute(
        "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE database_name = 'db'"
    ).fetchall()
    if ("store.migrations",) not in tables:
        if tables:
            raise RegistryFormatError(
                f"{path} is a DuckDB database but not a registry (it holds {tables[0][0]}); give another path"
            )
        return []
    names = [row[0] for row in connection.execute("SELECT name FROM store.migrations ORDER BY name").fetchall()]
    if unknown := [name for name in names if name not in MIGRATIONS]:
        raise RegistryFormatError(
            f"{path} has the schema {unknown[-1]!r}, which this version of rankloom does not know; upgrade rankloom"
        )
    return names


def migrate(connection: duckdb.DuckDBPyConnection, path: Path, artifacts: str) -> list[str]:
    """Bring the attached file to the newest schema.

    Args:
        connection: A connection that may write and whose default database is the file's.
        path: The file, for messages.
        artifacts: The name of the folder beside the file that holds the artifacts.

    Returns:
        The names of the migrations that ran.
    """
    done = applied(connection, path)
    todo = [name for name in MIGRATIONS if name not in done]
    if not todo:
        return []
    connection.execute("CREATE SCHEMA IF NOT EXISTS store")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS store.migrations (name VARCHAR PRIMARY KEY, applied_at TIMESTAMPTZ NOT NULL)"
    )
    for name in todo:
        connection.begin()
        try:
            connection.execute(MIGRATIONS[name])
            connection.execute("INSERT INTO store.migrations VALUES (?, now())", [name])
            if name == next(iter(MIGRATIONS)):
                connection.execute("INSERT INTO store.settings VALUES ('artifacts', ?)", [artifacts])
            if name == todo[-1]:
                views.create(connection)
        except duckdb.Error:
            connection.rollback()
            raise
        connection.commit()
    connection.execute("CHECKPOINT db")
    return todo


def artifacts_folder(connection: duckdb.DuckDBPyConnection) -> str:
    """The name of the folder beside the file that holds the artifacts: it stays when the file is renamed."""
    ((name,),) = connection.execute("SELECT value FROM store.settings WHERE key = 'artifacts'").fetchall()
    return str(name)
