-- Whose a task was at each of its steps, and who took it.
--
-- The owner is the identity context that the handle is bound to; it does not change. new_token: the caller came with
-- another credential than at its own step before. actors is the whole chain of delegation (RFC 8693 act), a JSON array,
-- outermost first. grant_id: the step was another's than the owner's, by this grant.
-- $task ref required: the task's reference
WITH taken AS (
    SELECT a.*, try(json_extract(decode(e.body), '$.authority.actors'))::VARCHAR AS actors
    FROM activity a
    JOIN entries e ON e.stream_seq = a.stream_seq
    WHERE a.task_ref = $task AND a.kind IN ('task', 'access')
        AND a.stream_seq BETWEEN $first AND $last AND e.stream_seq BETWEEN $first AND $last
        AND a.stream_seq <= $as_of
        AND ($tenant::VARCHAR IS NULL OR a.tenant = $tenant)
)
SELECT
    s.stream_seq,
    s.ord,
    s.at_time,
    s.tenant,
    s.task_ref,
    s.type,
    s.status_after,
    t.iss AS owner_iss,
    t.sub AS owner_sub,
    t.client_id AS owner_client_id,
    s.trigger,
    s.iss,
    s.sub,
    s.principal_level,
    s.client_id,
    s.client_level,
    s.token_hash,
    s.jti,
    s.credential_level,
    coalesce(
        s.token_hash <> lag(s.token_hash IGNORE NULLS) OVER (
            PARTITION BY s.trigger, s.iss, s.sub, s.client_id
            ORDER BY s.stream_seq, s.ord
        ),
        false
    ) AS new_token,
    s.actors,
    s.grant_id,
    s.binding_differs,
    s.standing,
    s.recorded_at,
    s.entry_id,
    s.leaf_sha256
FROM taken s
JOIN tasks t ON t.task_ref = s.task_ref
QUALIFY s.stream_seq > $after
ORDER BY s.stream_seq, s.ord
LIMIT $most;
