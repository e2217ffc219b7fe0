-- The history of one task.
--
-- Everything on its own subjects; callers who were denied while they claimed its reference, counted for this task alone;
-- messages on its subjects that were not accepted as entries (kind rejected, why in reason). What may be missing is in
-- gaps.
-- $task ref required: the task's reference
WITH claimed AS MATERIALIZED (
    SELECT stream_seq, ord, times FROM denials WHERE task_ref = $task
)
SELECT *
FROM (
    SELECT *
    FROM activity
    WHERE stream_seq BETWEEN $first AND $last AND task_ref = $task AND kind IN ('task', 'access')
        AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    UNION ALL
    SELECT a.* REPLACE ($task AS task_ref, c.times AS times)
    FROM claimed c
    JOIN activity a ON a.stream_seq = c.stream_seq AND a.ord = c.ord
    WHERE $tenant::VARCHAR IS NULL OR a.tenant = $tenant
    UNION ALL BY NAME
    SELECT stream_seq, 0::UINTEGER AS ord, 'rejected' AS kind, task_ref, reason, leaf_sha256
    FROM rejected
    WHERE task_ref = $task AND ($tenant_token::VARCHAR IS NULL OR split_part(subject, '.', 4) = $tenant_token)
)
WHERE stream_seq > $after AND stream_seq <= $as_of
ORDER BY stream_seq, ord
LIMIT $most;
