-- Tasks that a principal made.
SELECT tenant, task_ref
FROM tasks
WHERE
    first_seq <= $size
    AND sub = $sub
    AND iss IS NOT DISTINCT FROM coalesce($iss, iss)
    AND ($client_id IS NULL OR client_id = $client_id)
    AND ($tenant IS NULL OR tenant = $tenant)
ORDER BY first_seq
LIMIT $most
