-- The state of one or all tasks as of a time or a sequence.
--
-- Computed from the events recorded until then, never from the present state. One row for each task that was there, in the
-- order of their creation; entry_id and leaf_sha256 are those of its creation, last_… those of its last entry until then.
-- outstanding is a JSON array of the keys of the requests for input that were not answered. standing is what the
-- creator's authority was worth: a revocation that held then is in it.
--
-- Exactly one of: time, sequence
-- $time time: everything recorded until then, and then
-- $sequence sequence: everything up to this sequence of the stream
-- $task ref: only this task; left out: all
WITH cut AS MATERIALIZED (
    SELECT stream_seq, recorded_at AS at_time
    FROM entries
    WHERE stream_seq <= least($as_of, coalesce($sequence::UBIGINT, $as_of))
        AND ($time::TIMESTAMP IS NULL OR recorded_at <= $time)
    ORDER BY stream_seq DESC
    LIMIT 1
)
SELECT first_seq AS stream_seq, last_seq
FROM tasks
WHERE first_seq > $after AND first_seq <= (SELECT cut.stream_seq FROM cut) AND first_seq BETWEEN $first AND $last
    AND ($task::VARCHAR IS NULL OR task_ref = $task)
    AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
ORDER BY first_seq
LIMIT $most;

WITH cut AS MATERIALIZED (
    SELECT stream_seq, recorded_at AS at_time
    FROM entries
    WHERE stream_seq <= least($as_of, coalesce($sequence::UBIGINT, $as_of))
        AND ($time::TIMESTAMP IS NULL OR recorded_at <= $time)
    ORDER BY stream_seq DESC
    LIMIT 1
),
page AS MATERIALIZED (
    SELECT * FROM handles WHERE stream_seq BETWEEN $page_first AND $page_last AND stream_seq IN (SELECT unnest($page::UBIGINT[]))
),
told AS MATERIALIZED (
    SELECT *
    FROM events
    WHERE stream_seq BETWEEN $page_first AND $page_last AND task_ref IN (SELECT task_ref FROM page)
        AND stream_seq <= (SELECT cut.stream_seq FROM cut)
),
folded AS (
    SELECT
        task_ref,
        max(stream_seq) AS last_seq,
        arg_max(status_after, (stream_seq, ord)) FILTER (WHERE status_after IS NOT NULL) AS status,
        max(at_time) FILTER (WHERE type = 'TaskExpired') AS expired_at,
        max(at_time) FILTER (WHERE type = 'HandleRevoked') AS revoked_at,
        max(at_time) FILTER (WHERE type = 'CancelRequested') AS cancel_requested_at,
        max(at_time) FILTER (WHERE type IN ('TaskCompleted', 'TaskFailed', 'TaskCancelled')) AS ended_at,
        max(at_time) FILTER (WHERE type = 'PayloadShredded') AS shredded_at,
        arg_max(action, (stream_seq, ord)) FILTER (WHERE type = 'AuthorityChanged') AS standing,
        arg_max(json_extract(payload, '$.until_s')::BIGINT, (stream_seq, ord)) FILTER (
            WHERE type = 'AuthorityChanged'
        ) AS until_s,
        count(*) FILTER (WHERE type = 'AuthorityChanged') AS changes,
        count(*) FILTER (WHERE type = 'GrantGiven') - count(*) FILTER (WHERE type = 'GrantWithdrawn') AS grants,
        count(*) FILTER (WHERE type = 'HoldPlaced') - count(*) FILTER (WHERE type = 'HoldReleased') AS holds
    FROM told
    GROUP BY task_ref
),
authority AS (
    SELECT
        f.task_ref,
        CASE
            WHEN f.changes = 0 THEN made.token_expires_at
            WHEN f.until_s <> 0 AND f.until_s BETWEEN -62135596800 AND 253402300799
            THEN make_timestamp(f.until_s * 1000000)
        END AS until
    FROM folded f
    JOIN page h ON h.task_ref = f.task_ref
    JOIN entries made ON made.stream_seq = h.stream_seq AND made.stream_seq BETWEEN $page_first AND $page_last
),
named AS (
    SELECT task_ref, string_agg(DISTINCT revocation, ', ' ORDER BY revocation) AS revocations
    FROM revoked_tasks
    WHERE revoked_seq <= (SELECT cut.stream_seq FROM cut)
        AND (lifted_seq IS NULL OR lifted_seq > (SELECT cut.stream_seq FROM cut))
        AND task_ref IN (SELECT task_ref FROM page)
    GROUP BY task_ref
),
asked AS (
    SELECT task_ref, to_json(list(input_key ORDER BY input_key))::VARCHAR AS outstanding
    FROM (
        SELECT task_ref, input_key FROM told WHERE type = 'InputRequested'
        EXCEPT
        SELECT task_ref, input_key FROM told WHERE type = 'InputResponded'
    )
    GROUP BY task_ref
)
SELECT
    h.stream_seq,
    h.task_ref,
    h.tenant,
    h.server,
    h.tool,
    f.status,
    h.iss,
    h.sub,
    h.client_id,
    CASE
        WHEN named.revocations IS NOT NULL OR f.standing = 'revoked' THEN 'revoked'
        WHEN f.standing = 'lapsed' THEN 'lapsed'
        WHEN authority.until IS NULL THEN 'unknown'
        WHEN authority.until <= cut.at_time THEN 'lapsed'
        ELSE 'valid'
    END AS standing,
    authority.until AS authority_until,
    named.revocations,
    coalesce(asked.outstanding, '[]') AS outstanding,
    f.grants,
    f.holds,
    f.revoked_at IS NULL AND f.expired_at IS NULL AS opens,
    h.created_at,
    f.cancel_requested_at,
    f.ended_at,
    f.revoked_at,
    f.expired_at,
    f.shredded_at,
    h.entry_id,
    h.leaf_sha256,
    f.last_seq,
    newest.entry_id AS last_entry_id,
    newest.leaf_sha256 AS last_leaf_sha256,
    cut.stream_seq AS as_of_seq,
    cut.at_time AS as_of_time
FROM page h
CROSS JOIN cut
JOIN folded f ON f.task_ref = h.task_ref
JOIN authority ON authority.task_ref = h.task_ref
JOIN entries newest ON newest.stream_seq = f.last_seq AND newest.stream_seq BETWEEN $page_first AND $page_last
LEFT JOIN asked ON asked.task_ref = h.task_ref
LEFT JOIN named ON named.task_ref = h.task_ref
ORDER BY h.stream_seq;
