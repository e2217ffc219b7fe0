-- The tasks that a task's work made, and those that their work made.
--
-- One row for each task, in the order of their creation; stream_seq, entry_id and leaf_sha256 are those of its creation.
-- depth: 1 for the work of the task itself. parent_level says how far a link is proved: asserted, an MCP server named the
-- parent by a handle that opens for the caller; claimed, the caller's trace context (W3C traceparent, tracestate) did. Who
-- sends no trace context is not linked.
-- $task ref required: the task's reference
WITH RECURSIVE line AS (
    SELECT stream_seq, task_ref, action AS parent, payload, 1 AS depth
    FROM notable
    WHERE type = 'TaskCreated' AND action = $task AND stream_seq <= $as_of
        AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    UNION ALL
    SELECT n.stream_seq, n.task_ref, n.action, n.payload, l.depth + 1
    FROM notable n
    JOIN line l ON n.action = l.task_ref
    WHERE n.type = 'TaskCreated' AND n.stream_seq > l.stream_seq AND n.stream_seq <= $as_of
        AND ($tenant::VARCHAR IS NULL OR n.tenant = $tenant)
)
SELECT
    l.stream_seq,
    l.depth,
    l.parent,
    coalesce(json_extract_string(l.payload, '$.parent_level'), 'claimed') AS parent_level,
    h.* EXCLUDE (stream_seq)
FROM line l
JOIN (
    SELECT * FROM handles WHERE task_ref IN (SELECT task_ref FROM line)
) AS h
    ON h.task_ref = l.task_ref
WHERE l.stream_seq > $after
ORDER BY l.stream_seq
LIMIT $most;
