-- The authority a task was created with, and what it is worth now.
--
-- then_…: what the creating entry says; now_…: what is recorded up to the end of the trail, judged by the clock. The rule
-- of now is not known, only which policy decides: the decision itself is made when somebody asks for something.
-- revocations are those that hold and name the creator, the client or the credential, by comma; changes is how often the
-- trail says that the authority changed.
-- $task ref: only this task; left out: all
-- $time time: judged as of then; left out: now
SELECT first_seq AS stream_seq
FROM tasks
WHERE first_seq > $after AND first_seq <= $as_of AND first_seq BETWEEN $first AND $last
    AND ($task::VARCHAR IS NULL OR task_ref = $task)
    AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
ORDER BY first_seq
LIMIT $most;

WITH moment AS (
    SELECT coalesce($time::TIMESTAMP, make_timestamp(epoch_us(now()))) AS at_time
),
page AS MATERIALIZED (
    SELECT * FROM handles WHERE stream_seq BETWEEN $page_first AND $page_last AND stream_seq IN (SELECT unnest($page::UBIGINT[]))
),
named AS (
    SELECT task_ref, string_agg(DISTINCT revocation, ', ' ORDER BY revocation) AS revocations
    FROM revoked_tasks
    WHERE lifted_seq IS NULL AND task_ref IN (SELECT task_ref FROM page)
    GROUP BY task_ref
),
changed AS (
    SELECT task_ref, count(*) AS changes
    FROM notable
    WHERE type = 'AuthorityChanged' AND task_ref IN (SELECT task_ref FROM page)
    GROUP BY task_ref
),
deciding AS (
    SELECT version, sha256
    FROM policies
    WHERE tenant = '_' OR tenant = $tenant
    ORDER BY stream_seq DESC
    LIMIT 1
)
SELECT
    h.stream_seq,
    h.task_ref,
    h.tenant,
    h.server,
    h.tool,
    h.status,
    h.opens,
    h.iss,
    h.sub,
    h.client_id,
    h.created_at AS then_at,
    e.principal_level AS then_principal_level,
    e.client_level AS then_client_level,
    e.credential_level AS then_credential_level,
    e.credential_method AS then_credential_method,
    e.token_hash AS then_token_hash,
    e.jti AS then_jti,
    e.token_expires_at AS then_until,
    e.effect AS then_effect,
    e.decision_reason AS then_reason,
    e.policies AS then_policies,
    e.policy_version AS then_policy_version,
    e.policy_sha256 AS then_policy_sha256,
    moment.at_time AS now_at,
    CASE
            WHEN named.revocations IS NOT NULL OR h.standing = 'revoked' THEN 'revoked'
            WHEN h.standing = 'lapsed' THEN 'lapsed'
            WHEN h.authority_until IS NULL THEN 'unknown'
            WHEN h.authority_until <= moment.at_time THEN 'lapsed'
            ELSE 'valid'
        END AS now_standing,
    h.authority_until AS now_until,
    deciding.version AS now_policy_version,
    deciding.sha256 AS now_policy_sha256,
    named.revocations,
    coalesce(changed.changes, 0) AS changes,
    h.grants,
    h.entry_id,
    h.leaf_sha256
FROM page h
JOIN entries e ON e.stream_seq = h.stream_seq AND e.stream_seq BETWEEN $page_first AND $page_last
CROSS JOIN moment
LEFT JOIN deciding ON true
LEFT JOIN named ON named.task_ref = h.task_ref
LEFT JOIN changed ON changed.task_ref = h.task_ref
ORDER BY h.stream_seq
LIMIT $most;
