-- What an export of this scope holds: its first sequence, its last, and how many rows.
--
-- $first_wanted sequence: from this sequence on
-- $last_wanted sequence: up to this one
-- $since time: only what was recorded at this time or later
-- $until time: only what was recorded before this time
-- $ref ref: only what concerns this task
WITH wanted AS MATERIALIZED (
    SELECT min(e.stream_seq) AS low, max(e.stream_seq) AS high, count(*) AS steps
    FROM entries e
    LEFT JOIN events v USING (stream_seq)
    WHERE e.stream_seq > $after AND e.stream_seq <= $as_of
        AND e.stream_seq BETWEEN coalesce($first_wanted, 0) AND coalesce($last_wanted, 9223372036854775807)
        AND ($since::TIMESTAMP IS NULL OR e.recorded_at >= $since)
        AND ($until::TIMESTAMP IS NULL OR e.recorded_at < $until)
        AND ($tenant::VARCHAR IS NULL OR e.tenant = $tenant)
        AND (
            $ref::VARCHAR IS NULL OR e.task_ref = $ref
            OR e.stream_seq IN (SELECT d.stream_seq FROM denials d WHERE d.task_ref = $ref)
        )
),
found AS (
    SELECT low, high, steps FROM wanted
    UNION ALL
    SELECT min(r.stream_seq), max(r.stream_seq), count(*)
    FROM rejected r, wanted
    WHERE r.stream_seq > $after AND r.stream_seq <= $as_of
        AND r.stream_seq BETWEEN coalesce($first_wanted, 0) AND coalesce($last_wanted, 9223372036854775807)
        AND (($since::TIMESTAMP IS NULL AND $until::TIMESTAMP IS NULL) OR r.stream_seq BETWEEN low AND high)
        AND ($tenant::VARCHAR IS NULL OR r.reason = 'missing' OR split_part(r.subject, '.', 4) = $tenant_token)
        AND ($ref::VARCHAR IS NULL OR r.task_ref = $ref)
)
SELECT
    coalesce(min(low), 0)::BIGINT AS first_seq,
    coalesce(max(high), 0)::BIGINT AS last_seq,
    sum(steps)::BIGINT AS steps
FROM found
LIMIT $most;
