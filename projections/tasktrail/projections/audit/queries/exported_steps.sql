-- The steps of an export between two sequences, in order, as rows of the view `steps` with further columns at the end.
--
-- $first_wanted sequence required: from this sequence on
-- $last_wanted sequence required: up to this one
-- $since time: only what was recorded at this time or later
-- $until time: only what was recorded before this time
-- $ref ref: only what concerns this task
WITH exported AS (
    SELECT
        s.*,
        e.rpc_method,
        e.server,
        e.traceparent,
        e.created_by,
        e.key_id,
        e.signature,
        NULL::VARCHAR AS detail
    FROM steps s
    JOIN entries e USING (stream_seq)
    WHERE s.stream_seq > $after AND s.stream_seq BETWEEN $first_wanted AND $last_wanted
        AND e.stream_seq > $after AND e.stream_seq BETWEEN $first_wanted AND $last_wanted
        AND ($since::TIMESTAMP IS NULL OR e.recorded_at >= $since)
        AND ($until::TIMESTAMP IS NULL OR e.recorded_at < $until)
        AND ($tenant::VARCHAR IS NULL OR e.tenant = $tenant)
        AND (
            $ref::VARCHAR IS NULL OR e.task_ref = $ref
            OR e.stream_seq IN (SELECT d.stream_seq FROM denials d WHERE d.task_ref = $ref)
        )
    UNION ALL BY NAME
    SELECT
        stream_seq,
        0 AS ord,
        'anomaly' AS kind,
        reason AS type,
        task_ref,
        leaf_sha256,
        detail
    FROM rejected
    WHERE stream_seq > $after AND stream_seq BETWEEN $first_wanted AND $last_wanted
        AND ($tenant::VARCHAR IS NULL OR reason = 'missing' OR split_part(subject, '.', 4) = $tenant_token)
        AND ($ref::VARCHAR IS NULL OR task_ref = $ref)
)
SELECT *
FROM exported
ORDER BY stream_seq, ord
LIMIT $most;
