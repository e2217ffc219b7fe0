-- The policy activated last. $tenants: whose.
SELECT *
FROM service_steps
WHERE kind = 'governance' AND type = 'PolicyActivated' AND list_contains($tenants::VARCHAR[], tenant)
ORDER BY stream_seq DESC, ord DESC
LIMIT 1;
