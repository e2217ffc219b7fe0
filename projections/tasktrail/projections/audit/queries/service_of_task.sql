-- Revocations made or lifted, and what the service says may be missing from a task's time. $tenants: whose trails;
-- $created_at, $expired_at: the task's, from `tasks`.
SELECT stream_seq, ord, at_time, type, payload
FROM service_events
WHERE list_contains($tenants::VARCHAR[], tenant)
    AND (
        type IN ('PrincipalRevoked', 'RevocationLifted')
        OR (
            type = 'GapFound' AND last_at >= $created_at
            AND ($expired_at::TIMESTAMP IS NULL OR first_at <= $expired_at)
        )
    );
