"""When each attempt of a search's trials began and ended, read from the log of events."""

from __future__ import annotations

# An attempt that was paused, or whose lane died, has no end of its own in the log: its slot was free by the time at
# which anything else is told of the trial, of the slot, or of the search. And one that was stopped while it waited
# for a slot gave its own back before.
SPANS = """
    WITH mine AS (SELECT trial_id, number, search_id FROM store.trials WHERE search_id = ?),
    told AS (
        SELECT kind, subject, "at", payload FROM store.events
        WHERE kind IN ('trial_started', 'trial_ended') AND subject IN (SELECT trial_id FROM mine)),
    starts AS (
        SELECT subject AS trial_id, (payload->>'$.attempt')::INTEGER AS attempt, payload->>'$.lane' AS lane,
            (payload->>'$.slot')::INTEGER AS slot, "at" AS started_at
        FROM told WHERE kind = 'trial_started'),
    ends AS (
        SELECT subject AS trial_id, (payload->>'$.attempt')::INTEGER AS attempt, max("at") AS "at",
            arg_max(payload->>'$.status', "at") AS status
        FROM told WHERE kind = 'trial_ended' GROUP BY ALL),
    pauses AS (
        SELECT "at" AS over_at FROM store.events
        WHERE kind = 'search_ended' AND subject = (SELECT any_value(search_id) FROM mine)),
    attempts AS (
        SELECT s.*, lead(started_at) OVER (PARTITION BY trial_id ORDER BY attempt) AS again_at,
            CASE WHEN slot IS NOT NULL THEN
                lead(started_at) OVER (PARTITION BY lane, slot ORDER BY started_at, trial_id) END AS taken_at
        FROM starts s),
    bounds AS (
        SELECT a.*, m.number, e.status AS told_status,
            least(e."at", a.again_at, a.taken_at, p.over_at) AS ended_at
        FROM attempts a JOIN mine m USING (trial_id)
        LEFT JOIN ends e ON e.trial_id = a.trial_id AND e.attempt = a.attempt
        ASOF LEFT JOIN pauses p ON a.started_at <= p.over_at)
    SELECT * EXCLUDE (told_status, again_at, taken_at),
        coalesce(told_status, CASE WHEN ended_at IS NULL THEN 'running' ELSE 'interrupted' END) AS status
    FROM bounds"""
