-- What a leak could reach: of a principal, a token or a handle.
--
-- One row for each payload disclosure, answered input, cancellation, subscription and grant, and one for the creation of
-- every task in reach. reach says how: own (it made the step; for a handle, whoever made it), used (another made the task,
-- it did something on it), identity (the task is bound to the identity context in which it was seen, and its handle opens
-- it still), grant (a grant named the principal), child (the work of a task that is own made it, or the work of such a
-- one, and all that happened in it), trace (another task of the same trace, and all that happened in it).
-- handle_opens: a live handle, which opens its task for who holds the task id and such a credential.
--
-- A link to a parent and the trace id (traceparent) of a creating request are its caller's word: a caller who sends no
-- trace context, or another one, is not found so.
--
-- Exactly one of: sub, token, task
-- $sub text: the principal's subject, as it is recorded
-- $iss text: its issuer, or the token's; left out: any
-- $token text: the token, by base64url SHA-256 (RFC 9449 ath) or jti
-- $task ref: the task whose handle leaked
WITH RECURSIVE own AS MATERIALIZED (
    -- A scan for one value is fast, one for either of two columns is not.
    SELECT DISTINCT task_ref, tenant, iss, sub, client_id
    FROM (
        SELECT *
        FROM entries
        WHERE sub = $sub AND ($iss::VARCHAR IS NULL OR iss = $iss OR (actor_sub = $sub AND actor_iss = $iss))
        UNION ALL
        SELECT *
        FROM entries
        WHERE actor_sub = $sub AND sub IS DISTINCT FROM $sub
            AND ($iss::VARCHAR IS NULL OR iss = $iss OR actor_iss = $iss)
        UNION ALL
        SELECT * FROM entries WHERE token_hash = $token AND ($iss::VARCHAR IS NULL OR iss = $iss)
        UNION ALL
        SELECT *
        FROM entries
        WHERE jti = $token AND token_hash IS DISTINCT FROM $token AND ($iss::VARCHAR IS NULL OR iss = $iss)
        UNION ALL
        SELECT *
        FROM entries
        WHERE task_ref = $task AND stream_seq BETWEEN $first AND $last AND ($iss::VARCHAR IS NULL OR iss = $iss)
    )
    WHERE task_ref IS NOT NULL AND stream_seq <= $as_of AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
),
of_own AS MATERIALIZED (
    SELECT first_seq, last_seq, trace_id FROM tasks WHERE task_ref IN (SELECT DISTINCT task_ref FROM own)
),
of_identity AS (
    SELECT t.first_seq, t.last_seq
    FROM tasks t
    SEMI JOIN (SELECT DISTINCT tenant, iss, sub, client_id FROM own WHERE $task::VARCHAR IS NULL) AS seen
        ON t.tenant = seen.tenant AND t.iss = seen.iss AND t.sub = seen.sub
        AND t.client_id IS NOT DISTINCT FROM seen.client_id
    WHERE t.revoked_at IS NULL AND t.expired_at IS NULL AND t.first_seq <= $as_of
),
of_grant AS (
    SELECT first_seq, last_seq
    FROM tasks
    WHERE task_ref IN (
        SELECT task_ref
        FROM grants
        WHERE to_sub = $sub AND stream_seq <= $as_of
            AND ($iss::VARCHAR IS NULL OR to_iss = $iss)
            AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    )
),
link AS MATERIALIZED (
    SELECT stream_seq, task_ref, action AS parent
    FROM notable
    WHERE type = 'TaskCreated' AND stream_seq <= $as_of AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
),
line AS (
    SELECT stream_seq, task_ref
    FROM link
    WHERE parent IN (SELECT task_ref FROM own)
    UNION
    SELECT k.stream_seq, k.task_ref
    FROM link k
    JOIN line l ON k.parent = l.task_ref
    WHERE k.stream_seq > l.stream_seq
),
of_child AS (
    SELECT first_seq, last_seq FROM tasks WHERE first_seq IN (SELECT stream_seq FROM line)
),
of_trace AS (
    SELECT first_seq, last_seq
    FROM tasks
    WHERE first_seq <= $as_of AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
        AND trace_id IN (SELECT trace_id FROM of_own WHERE trace_id IS NOT NULL)
),
reached AS MATERIALIZED (
    SELECT first_seq, max(last_seq) AS last_seq, min(rank) AS rank
    FROM (
        SELECT first_seq, last_seq, 2 AS rank FROM of_own
        UNION ALL
        SELECT first_seq, last_seq, 3 FROM of_identity
        UNION ALL
        SELECT first_seq, last_seq, 4 FROM of_grant
        UNION ALL
        SELECT first_seq, last_seq, 5 FROM of_child
        UNION ALL
        SELECT first_seq, last_seq, 6 FROM of_trace
    )
    GROUP BY first_seq
),
-- A page's worth of creations: what is after the last of them is on a later page.
ending AS (
    SELECT max(first_seq) AS last_seq
    FROM (
        SELECT first_seq FROM reached WHERE first_seq > $after AND first_seq <= $as_of ORDER BY first_seq LIMIT $most
    )
    HAVING count(*) = $most
),
closing AS (
    SELECT coalesce((SELECT last_seq FROM ending), $as_of) AS last_seq
)
SELECT r.first_seq AS stream_seq, least(r.last_seq, c.last_seq) AS last_seq, r.rank
FROM reached r, closing c
WHERE r.last_seq > $after AND r.first_seq <= c.last_seq;

WITH own AS MATERIALIZED (
    SELECT stream_seq
    FROM entries
    WHERE stream_seq > $after AND stream_seq BETWEEN $page_first AND $page_last AND task_ref IS NOT NULL
        AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
        AND ($task::VARCHAR IS NULL OR task_ref = $task)
        AND ($sub::VARCHAR IS NULL OR sub = $sub OR actor_sub = $sub)
        AND ($token::VARCHAR IS NULL OR token_hash = $token OR jti = $token)
        AND ($iss::VARCHAR IS NULL OR iss = $iss OR (actor_sub = $sub AND actor_iss = $iss))
),
reached AS MATERIALIZED (
    SELECT t.task_ref, t.first_seq, p.rank
    FROM tasks t
    JOIN (
        SELECT unnest($page::UBIGINT[]) AS first_seq, unnest($page_rank::INTEGER[]) AS rank
    ) AS p
        ON p.first_seq = t.first_seq
    WHERE t.first_seq BETWEEN $page_first AND $page_last
),
steps AS (
    SELECT n.stream_seq, r.first_seq, r.rank
    FROM notable n
    JOIN reached r ON r.task_ref = n.task_ref
    WHERE n.stream_seq > $after AND n.stream_seq BETWEEN $page_first AND $page_last AND r.rank IN (2, 5, 6)
        AND n.type IN ('ResultDisclosed', 'InputResponded', 'CancelRequested', 'SubscriptionOpened', 'GrantGiven')
    UNION ALL
    SELECT first_seq, first_seq, rank FROM reached
)
SELECT stream_seq, min(CASE WHEN stream_seq IN (SELECT stream_seq FROM own) THEN 1 ELSE rank END) AS rank
FROM steps
WHERE stream_seq > $after AND stream_seq <= $as_of
    AND (rank <> 2 OR stream_seq = first_seq OR stream_seq IN (SELECT stream_seq FROM own))
GROUP BY stream_seq
ORDER BY stream_seq
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
    ['own', 'used', 'identity', 'grant', 'child', 'trace'][i.rank] AS reach,
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
