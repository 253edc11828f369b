"""The views: what readers and users see of the tables.

They belong to no migration, as they hold nothing: they are made anew after every one.
"""

from __future__ import annotations

import duckdb

_TRIALS = """
    SELECT t.*, (SELECT max(a.adapter_id) FROM store.adapters a WHERE a.trial_id = t.trial_id) AS adapter_id
    FROM {rows} t"""

VIEWS: dict[str, str] = {
    "events": "FROM store.events",
    "step_metrics": "FROM store.step_metrics",
    "evaluations": "FROM store.evaluations",
    "promotions": "FROM store.promotions",
    "aliases": "FROM store.aliases WHERE adapter_id IS NOT NULL",
    "alias_moves": """
        SELECT payload->>'$.name' AS name, payload->>'$.alias' AS alias,
            lag(payload->>'$.adapter_id') OVER (
                PARTITION BY payload->>'$.name', payload->>'$.alias' ORDER BY sequence) AS previous,
            payload->>'$.adapter_id' AS adapter_id, "at", who, why, sequence
        FROM store.events WHERE kind = 'alias_moved'""",
    "base_tensors": "FROM store.base_tensors",
    "bases": """
        SELECT b.*, coalesce(n.adapters, 0)::INTEGER AS adapters
        FROM store.bases b
        LEFT JOIN (SELECT base_content_root, count(*) AS adapters FROM store.adapters GROUP BY ALL) n
            ON n.base_content_root = b.content_root""",
    "trials": _TRIALS.format(rows="store.trials"),
    "searches": """
        WITH summary AS (
            SELECT t.search_id, count(*)::INTEGER AS trials,
                count(*) FILTER (WHERE t.status IN ('completed', 'stopped', 'failed'))::INTEGER AS finished_trials,
                min(value) FILTER (WHERE isfinite(value)) AS lowest,
                max(value) FILTER (WHERE isfinite(value)) AS highest
            FROM (
                SELECT t.search_id, t.status,
                    CASE s.metric WHEN 'eval_loss' THEN t.eval_loss WHEN 'train_loss' THEN t.train_loss END AS value
                FROM store.trials t JOIN store.searches s USING (search_id)) t
            GROUP BY t.search_id)
        SELECT s.*, b.identity AS base_identity, coalesce(m.trials, 0) AS trials,
            coalesce(m.finished_trials, 0) AS finished_trials,
            CASE s.mode WHEN 'min' THEN m.lowest ELSE m.highest END AS best_value
        FROM store.searches s
        LEFT JOIN store.bases b ON b.content_root = s.base_content_root
        LEFT JOIN summary m USING (search_id)""",
    # No join: DuckDB then finds the top rows by few columns, and reads the others for those alone. Which folder
    # `artifact_path` lies below is a setting.
    "adapters": """
        SELECT adapter_id, name, status, search_id, search_name, trial_id, trial_number, base_identity,
            base_content_root, r, lora_alpha, use_rslora, lora_dropout, learning_rate, target_modules, seed, eval_loss,
            train_loss, steps, train_tokens, peak_memory_bytes, wall_s, effective_rank, update_norm, created_at,
            CASE status WHEN 'available' THEN 'sha256/' || artifact_sha256[1:2] || '/' || artifact_sha256 END
                AS artifact_path,
            artifact_sha256, aliases, tags, note, params, sequence
        FROM store.adapters""",
}


def trials_of(rows: str) -> str:
    """The query of the view `trials`, over some rows only: DuckDB does not bring a filter of the view to them.

    Args:
        rows: SQL that stands in FROM and has the columns of `store.trials`.
    """
    return _TRIALS.format(rows=rows)


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Make every view, or make it again as it is now.

    Args:
        connection: A connection that may write and whose default database is the registry's, with the newest tables.
    """
    for name, query in VIEWS.items():
        connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
