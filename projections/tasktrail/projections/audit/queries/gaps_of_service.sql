-- What the service says may be missing from the trail. $tenants: whose trails; $most: how many at most, the first ones.
SELECT *
FROM service_steps
WHERE type = 'GapFound' AND kind = 'control' AND list_contains($tenants::VARCHAR[], tenant)
ORDER BY stream_seq, ord
LIMIT $most;
