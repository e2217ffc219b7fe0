-- Entries of a principal: its own, also by delegation, and those where it acted for somebody else (actor_sub).
SELECT stream_seq
FROM entries
WHERE
    stream_seq <= $size
    AND (
        (sub = $sub AND ($iss IS NULL OR iss = $iss))
        OR (actor_sub = $sub AND ($iss IS NULL OR actor_iss = $iss))
    )
    AND ($client_id IS NULL OR client_id = $client_id)
    AND ($tenant IS NULL OR tenant = $tenant)
LIMIT $most
