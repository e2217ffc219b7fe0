-- Rows of `events` from plain ones, each the only one of its entry: what an event says is read from its JSON here, as
-- tasktrail.projections.audit.columns.event_row reads it.
INSERT INTO events BY NAME
SELECT
    stream_seq,
    0 AS ord,
    e.type,
    make_timestamp(e.at_ms * 1000) AS at_time,
    task_ref,
    status_after,
    e.key AS input_key,
    e.method,
    CASE e.type WHEN 'TaskCreated' THEN e.parent ELSE e.action END AS action,
    CASE e.type WHEN 'CancelRequested' THEN e.cause ELSE e.reason END AS reason,
    CASE e.type WHEN 'TaskPolled' THEN e.count WHEN 'ResultDisclosed' THEN coalesce(e.count, 1) END AS times,
    make_timestamp(e.first_ms * 1000) AS first_at,
    make_timestamp(e.last_ms * 1000) AS last_at,
    p.name AS payload_name,
    p.sha256 AS payload_sha256,
    p.size AS payload_size,
    nullif(array_to_string(p.flags, ', '), '') AS payload_flags,
    payload
FROM (
    SELECT
        *,
        coalesce(e.arguments, e.message, e.request, e.response, e.result) AS p
    FROM (
        SELECT
            *,
            json_transform(
                payload,
                '{
                    "type": "VARCHAR", "at_ms": "BIGINT", "key": "VARCHAR", "method": "VARCHAR", "action": "VARCHAR",
                    "parent": "VARCHAR", "reason": "VARCHAR", "cause": "VARCHAR", "count": "BIGINT",
                    "first_ms": "BIGINT", "last_ms": "BIGINT",
                    "arguments": {"name": "VARCHAR", "sha256": "VARCHAR", "size": "BIGINT", "flags": ["VARCHAR"]},
                    "message": {"name": "VARCHAR", "sha256": "VARCHAR", "size": "BIGINT", "flags": ["VARCHAR"]},
                    "request": {"name": "VARCHAR", "sha256": "VARCHAR", "size": "BIGINT", "flags": ["VARCHAR"]},
                    "response": {"name": "VARCHAR", "sha256": "VARCHAR", "size": "BIGINT", "flags": ["VARCHAR"]},
                    "result": {"name": "VARCHAR", "sha256": "VARCHAR", "size": "BIGINT", "flags": ["VARCHAR"]}
                }'
            ) AS e
        FROM given
    )
)
