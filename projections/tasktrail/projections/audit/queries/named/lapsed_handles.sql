-- Handles that open something still, though their creator's authority has lapsed.
--
-- One row for each task, in the order of their creation: the credential has ended, or a revocation that holds names the
-- creator, the client or the credential (revocations, by comma). What is recorded up to the end of the trail, judged by
-- the clock.
-- $time time: judged as of then; left out: now
-- $standing one of lapsed, revoked: only those
WITH moment AS (
    SELECT coalesce($time::TIMESTAMP, make_timestamp(epoch_us(now()))) AS at_time
),
named AS (
    SELECT task_ref, string_agg(DISTINCT revocation, ', ' ORDER BY revocation) AS revocations
    FROM revoked_tasks
    WHERE lifted_seq IS NULL
    GROUP BY task_ref
),
judged AS (
    SELECT
        h.* EXCLUDE (standing, opens, token_hash, jti, trace_id, revoked_at, expired_at, shredded_at),
        CASE
            WHEN named.revocations IS NOT NULL OR h.standing = 'revoked' THEN 'revoked'
            WHEN h.standing = 'lapsed' THEN 'lapsed'
            WHEN h.authority_until IS NULL THEN 'unknown'
            WHEN h.authority_until <= moment.at_time THEN 'lapsed'
            ELSE 'valid'
        END AS standing,
        named.revocations,
        moment.at_time AS judged_at
    FROM handles h
    CROSS JOIN moment
    LEFT JOIN named ON named.task_ref = h.task_ref
    WHERE h.opens AND h.expires_at > moment.at_time AND h.stream_seq > $after AND h.stream_seq <= $as_of
        AND ($tenant::VARCHAR IS NULL OR h.tenant = $tenant)
)
SELECT *
FROM judged
WHERE standing IN ('lapsed', 'revoked') AND ($standing::VARCHAR IS NULL OR standing = $standing)
ORDER BY stream_seq
LIMIT $most;
