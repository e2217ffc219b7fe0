-- Which principals, clients and tokens were revoked, and what holds still.
--
-- tasks is how many tasks a revocation names by their creator, client or creating credential. A revocation without a
-- tenant concerns everybody and is everybody's to see. Handles that were revoked one by one are in by_tool and in the
-- timelines of their tasks.
-- $in_force boolean: only those that hold, or only those that were lifted
-- $sub text: only of this subject
-- $token text: only of this token, by hash or jti
SELECT
    r.*,
    (
        SELECT count(*)
        FROM revoked_tasks t
        WHERE t.revoked_seq = r.stream_seq AND ($tenant::VARCHAR IS NULL OR t.tenant = $tenant)
    ) AS tasks
FROM revocations r
WHERE r.stream_seq > $after AND r.stream_seq <= $as_of
    AND ($tenant::VARCHAR IS NULL OR r.tenant IN ($tenant, ''))
    AND ($in_force::BOOLEAN IS NULL OR r.in_force = $in_force)
    AND ($sub::VARCHAR IS NULL OR r.revoked_sub = $sub)
    AND ($token::VARCHAR IS NULL OR r.revoked_token_hash = $token OR r.revoked_jti = $token)
ORDER BY r.stream_seq, r.ord
LIMIT $most;
