-- Who was denied, from where, how often and why.
--
-- One row for each source, which is tenant, address, subject, client and token together, in the order in which they were
-- denied first; stream_seq, entry_id and leaf_sha256 are those of the first time. attempts counts accesses, runs the folded runs
-- they are in. reasons is a JSON object, from the true reasons of a run to attempts; the caller was told none of them.
-- $address text: only from this address
-- $sub text: only this subject
-- $token text: only with this token, by hash or jti
-- $task ref: only runs in which this task's reference was claimed
-- $since time: only what was recorded from then on
-- $until time: only what was recorded before
WITH refused AS MATERIALIZED (
    SELECT
        stream_seq, ord, tenant, address, iss, sub, client_id, token_hash, reason, times, first_at, last_at
    FROM notable
    WHERE type = 'AccessDenied' AND stream_seq <= $as_of
        AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
        AND ($address::VARCHAR IS NULL OR address = $address)
        AND ($sub::VARCHAR IS NULL OR sub = $sub)
        AND ($token::VARCHAR IS NULL OR token_hash = $token OR jti = $token)
        AND ($since::TIMESTAMP IS NULL OR recorded_at >= $since)
        AND ($until::TIMESTAMP IS NULL OR recorded_at < $until)
        AND ($task::VARCHAR IS NULL OR stream_seq IN (SELECT stream_seq FROM denials WHERE task_ref = $task))
),
page AS MATERIALIZED (
    SELECT tenant, address, iss, sub, client_id, token_hash, min(stream_seq) AS first_seq
    FROM refused
    GROUP BY ALL
    HAVING min(stream_seq) > $after
    ORDER BY first_seq
    LIMIT $most
),
by_reason AS (
    SELECT
        p.first_seq,
        r.reason,
        max(r.stream_seq) AS last_seq,
        min(r.first_at) AS first_at,
        max(r.last_at) AS last_at,
        count(*) AS runs,
        sum(r.times)::BIGINT AS attempts
    FROM refused r
    JOIN page p
        ON r.tenant = p.tenant
        AND r.address IS NOT DISTINCT FROM p.address
        AND r.iss IS NOT DISTINCT FROM p.iss
        AND r.sub IS NOT DISTINCT FROM p.sub
        AND r.client_id IS NOT DISTINCT FROM p.client_id
        AND r.token_hash IS NOT DISTINCT FROM p.token_hash
    GROUP BY ALL
),
by_source AS (
    SELECT
        first_seq,
        max(last_seq) AS last_seq,
        min(first_at) AS first_at,
        max(last_at) AS last_at,
        sum(runs)::BIGINT AS runs,
        sum(attempts)::BIGINT AS attempts,
        to_json(map(list(reason ORDER BY reason), list(attempts ORDER BY reason)))::VARCHAR AS reasons
    FROM by_reason
    GROUP BY first_seq
)
SELECT
    e.stream_seq,
    s.last_seq,
    s.first_at,
    s.last_at,
    s.attempts,
    s.runs,
    s.reasons,
    e.tenant,
    e.address,
    e.address_level,
    e.iss,
    e.sub,
    e.principal_level,
    e.client_id,
    e.credential_method,
    e.credential_verification,
    e.token_hash,
    e.jti,
    e.entry_id,
    e.leaf_sha256
FROM by_source s
JOIN (
    SELECT *
    FROM notable
    WHERE type = 'AccessDenied' AND ord = 0 AND stream_seq IN (SELECT first_seq FROM page)
) AS e
    ON e.stream_seq = s.first_seq
ORDER BY e.stream_seq;
