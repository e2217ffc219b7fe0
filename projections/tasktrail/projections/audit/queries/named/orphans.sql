-- Messages that belong to a task and found no place in one.
--
-- Answers to what was never asked, or was answered before; what the work of a task said when the task was over, or was no
-- longer that worker's; and both for a task that is not there, or is another's. Nothing of them changed a task. what says
-- which it was: answer, progress, question, result, error or end (of the work); reason why it belongs nowhere. task_ref is
-- the task that was claimed, known whether this tenant has such a task; times is how often it came. Messages of the trail
-- itself that are no acceptable entries are in gaps.
-- $task ref: only those that claimed this task
-- $sub text: only of this subject; an MCP server is server: and its name
-- $since time: only what was recorded from then on
-- $until time: only what was recorded before
WITH unplaced AS MATERIALIZED (
    SELECT DISTINCT stream_seq
    FROM events
    WHERE stream_seq > $after AND stream_seq <= $as_of AND stream_seq BETWEEN $first AND $last
        AND ($task::VARCHAR IS NULL OR task_ref = $task)
        AND (
            type = 'InputIgnored'
            OR (
                type = 'CommandRefused' AND action IN (
                    'RespondToInput', 'ReportStatus', 'RequestInput', 'CompleteTask', 'FailTask', 'StopTask', 'LoseWorker'
                )
            )
        )
)
SELECT stream_seq
FROM (
    SELECT e.stream_seq, e.tenant, e.sub, e.recorded_at
    FROM entries e
    JOIN unplaced u ON u.stream_seq = e.stream_seq
    UNION ALL
    SELECT stream_seq, tenant, sub, recorded_at
    FROM notable
    WHERE type = 'AccessDenied' AND stream_seq > $after AND stream_seq <= $as_of
        AND method IN (
            'tasks/update', 'elicitation/create', 'sampling/createMessage', 'roots/list',
            'work/report', 'work/ask', 'work/complete', 'work/fail', 'work/stop', 'work/lose'
        )
        AND reason IS DISTINCT FROM 'work-waits-for-authority'
        AND ($task::VARCHAR IS NULL OR stream_seq IN (SELECT stream_seq FROM denials WHERE task_ref = $task))
)
WHERE ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    AND ($sub::VARCHAR IS NULL OR sub = $sub)
    AND ($since::TIMESTAMP IS NULL OR recorded_at >= $since)
    AND ($until::TIMESTAMP IS NULL OR recorded_at < $until)
ORDER BY stream_seq
LIMIT $most;

WITH came AS MATERIALIZED (
    SELECT a.* REPLACE (
        coalesce(c.task_ref, a.task_ref) AS task_ref,
        coalesce(c.reason, a.reason) AS reason,
        coalesce(c.times, a.times, 1) AS times
    )
    FROM activity a
    LEFT JOIN (
        SELECT stream_seq AS denied_seq, ord AS denied_ord, task_ref, reason, times
        FROM denials
        WHERE stream_seq BETWEEN $page_first AND $page_last AND ($task::VARCHAR IS NULL OR task_ref = $task)
    ) AS c
        ON c.denied_seq = a.stream_seq AND c.denied_ord = a.ord
    WHERE a.stream_seq BETWEEN $page_first AND $page_last AND a.stream_seq IN (SELECT unnest($page::UBIGINT[]))
        AND a.type IN ('InputIgnored', 'CommandRefused', 'AccessDenied')
)
SELECT
    a.stream_seq,
    a.ord,
    a.at_time,
    CASE
        WHEN a.type = 'InputIgnored' OR a.action = 'RespondToInput' OR NOT starts_with(a.method, 'work/') THEN 'answer'
        WHEN a.action = 'ReportStatus' OR a.method = 'work/report' THEN 'progress'
        WHEN a.action = 'RequestInput' OR a.method = 'work/ask' THEN 'question'
        WHEN a.action = 'CompleteTask' OR a.method = 'work/complete' THEN 'result'
        WHEN a.action = 'FailTask' OR a.method = 'work/fail' THEN 'error'
        ELSE 'end'
    END AS what,
    a.reason,
    a.times,
    a.tenant,
    a.task_ref,
    a.task_ref IS NOT NULL AND a.task_ref IN (SELECT task_ref FROM tasks WHERE tenant = a.tenant) AS known,
    a.input_key,
    a.trigger,
    a.iss,
    a.sub,
    a.principal_level,
    a.client_id,
    a.token_hash,
    a.jti,
    a.credential_level,
    a.address,
    a.server,
    a.entry_id,
    a.leaf_sha256
FROM came a
ORDER BY a.stream_seq, a.ord, a.task_ref
LIMIT $most;
