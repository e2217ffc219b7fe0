-- The policy activated last. $tenants: whose.
SELECT stream_seq, ord, at_time, type, payload
FROM service_events
WHERE type = 'PolicyActivated' AND list_contains($tenants::VARCHAR[], tenant)
ORDER BY stream_seq DESC, ord DESC
LIMIT 1;
