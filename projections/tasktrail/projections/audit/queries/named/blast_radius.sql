-- What a leak could reach: of a principal, a token or a handle.
--
-- One row for each payload disclosure, answered input, cancellation, subscription and grant, and one for the creation of
-- every task in reach. reach says how: own (it made the step; for a handle, whoever made it), used (another made the task,
-- it did something on it), identity (the task is bound to the identity context in which it was seen, and its handle opens
-- it still), grant (a grant named the principal), trace (another task of the same trace, and all that happened in it).
-- handle_opens: a live handle, which opens its task for who holds the task id and such a credential.
--
-- Parent and child tasks are not linked on the trail. Tasks of one piece of work are found by the trace id of their
-- creating requests (traceparent), which is the caller's word: a caller who sends none, or another one, is not found so.
--
-- Exactly one of: sub, token, task
-- $sub text: the principal's subject, as it is recorded
-- $iss text: its issuer, or the token's; left out: any
-- $token text: the token, by base64url SHA-256 (RFC 9449 ath) or jti
-- $task ref: the task whose handle leaked
WITH own AS MATERIALIZED (
    SELECT stream_seq, task_ref, tenant, iss, sub, client_id
    FROM entries
    WHERE task_ref IS NOT NULL AND stream_seq <= $as_of AND stream_seq BETWEEN $first AND $last
        AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
        AND ($task::VARCHAR IS NULL OR task_ref = $task)
        AND ($sub::VARCHAR IS NULL OR sub = $sub OR actor_sub = $sub)
        AND ($token::VARCHAR IS NULL OR token_hash = $token OR jti = $token)
        AND ($iss::VARCHAR IS NULL OR iss = $iss OR (actor_sub = $sub AND actor_iss = $iss))
),
of_own AS (
    SELECT DISTINCT task_ref FROM own
),
of_identity AS (
    SELECT h.task_ref
    FROM handles h
    SEMI JOIN (SELECT DISTINCT tenant, iss, sub, client_id FROM own WHERE $task::VARCHAR IS NULL) seen
        ON h.tenant = seen.tenant AND h.iss = seen.iss AND h.sub = seen.sub
        AND h.client_id IS NOT DISTINCT FROM seen.client_id
    WHERE h.opens AND h.stream_seq <= $as_of
),
of_grant AS (
    SELECT task_ref
    FROM notable
    WHERE type = 'GrantGiven' AND $sub::VARCHAR IS NOT NULL AND stream_seq <= $as_of
        AND json_extract_string(payload, '$.to.sub') = $sub
        AND ($iss::VARCHAR IS NULL OR json_extract_string(payload, '$.to.iss') = $iss)
        AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
),
of_trace AS (
    SELECT t.task_ref
    FROM tasks t
    WHERE t.first_seq <= $as_of AND ($tenant::VARCHAR IS NULL OR t.tenant = $tenant)
        AND t.trace_id IN (
            SELECT o.trace_id FROM tasks o WHERE o.trace_id IS NOT NULL AND o.task_ref IN (SELECT task_ref FROM of_own)
        )
),
reached AS MATERIALIZED (
    SELECT task_ref, min(rank) AS rank
    FROM (
        SELECT task_ref, 2 AS rank FROM of_own
        UNION ALL
        SELECT task_ref, 3 FROM of_identity
        UNION ALL
        SELECT task_ref, 4 FROM of_grant
        UNION ALL
        SELECT task_ref, 5 FROM of_trace
    )
    GROUP BY task_ref
),
steps AS MATERIALIZED (
    SELECT stream_seq, task_ref
    FROM notable
    WHERE type IN ('ResultDisclosed', 'InputResponded', 'CancelRequested', 'SubscriptionOpened', 'GrantGiven')
        AND task_ref IN (SELECT task_ref FROM reached WHERE rank IN (2, 5))
    UNION ALL
    SELECT first_seq, task_ref FROM tasks WHERE task_ref IN (SELECT task_ref FROM reached)
)
SELECT
    s.stream_seq,
    min(CASE WHEN s.stream_seq IN (SELECT stream_seq FROM own) THEN 1 ELSE r.rank END) AS rank
FROM steps s
JOIN reached r ON r.task_ref = s.task_ref
WHERE s.stream_seq > $after AND s.stream_seq <= $as_of
    AND (
        r.rank <> 2
        OR s.stream_seq IN (SELECT stream_seq FROM own)
        OR s.stream_seq IN (SELECT first_seq FROM tasks WHERE task_ref IN (SELECT task_ref FROM of_own))
    )
GROUP BY s.stream_seq
ORDER BY s.stream_seq
LIMIT $most;

WITH in_reach AS MATERIALIZED (
    SELECT unnest($page::UBIGINT[]) AS stream_seq, unnest($page_rank::INTEGER[]) AS rank
),
told AS MATERIALIZED (
    SELECT
        stream_seq, ord, at_time, type, tenant, task_ref, trigger, iss, sub, principal_level, client_id, token_hash, jti,
        credential_level, address, grant_id, payload_sha256, payload, entry_id, leaf_sha256
    FROM activity
    WHERE stream_seq BETWEEN $page_first AND $page_last AND stream_seq IN (SELECT unnest($page::UBIGINT[]))
)
SELECT
    a.stream_seq,
    a.ord,
    a.at_time,
    CASE a.type
        WHEN 'TaskCreated' THEN 'created'
        WHEN 'ResultDisclosed' THEN 'disclosed'
        WHEN 'InputResponded' THEN 'answered'
        WHEN 'CancelRequested' THEN 'cancelled'
        WHEN 'SubscriptionOpened' THEN 'subscribed'
        ELSE 'granted'
    END AS fact,
    ['own', 'used', 'identity', 'grant', 'trace'][i.rank] AS reach,
    a.tenant,
    a.task_ref,
    h.server,
    h.tool,
    h.status,
    h.opens AS handle_opens,
    h.iss AS owner_iss,
    h.sub AS owner_sub,
    h.client_id AS owner_client_id,
    a.trigger,
    a.iss,
    a.sub,
    a.principal_level,
    a.client_id,
    a.token_hash,
    a.jti,
    a.credential_level,
    a.address,
    a.grant_id,
    CASE
        WHEN a.type = 'ResultDisclosed' THEN json_extract(a.payload, '$.sha256')::VARCHAR
        WHEN a.payload_sha256 IS NOT NULL THEN to_json([a.payload_sha256])::VARCHAR
    END AS payloads_sha256,
    a.entry_id,
    a.leaf_sha256
FROM told a
JOIN in_reach i ON i.stream_seq = a.stream_seq
JOIN (
    SELECT * FROM handles WHERE task_ref IN (SELECT task_ref FROM told)
) AS h
    ON h.task_ref = a.task_ref
WHERE a.type IN (
    'TaskCreated', 'ResultDisclosed', 'InputResponded', 'CancelRequested', 'SubscriptionOpened', 'GrantGiven'
)
ORDER BY a.stream_seq, a.ord
LIMIT $most;
