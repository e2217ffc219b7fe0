-- Everything by a principal.
--
-- Also what somebody else did for it, or it for somebody else, by delegation (actor_sub).
-- $sub text required: its subject, as it is recorded
-- $iss text: its issuer; left out: any
-- $client_id text: only through this client
-- $since time: only what was recorded from then on
-- $until time: only what was recorded before
SELECT stream_seq
FROM entries
WHERE stream_seq > $after AND stream_seq <= $as_of
    AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    AND (
        (sub = $sub AND ($iss::VARCHAR IS NULL OR iss = $iss))
        OR (actor_sub = $sub AND ($iss::VARCHAR IS NULL OR actor_iss = $iss))
    )
    AND ($client_id::VARCHAR IS NULL OR client_id = $client_id)
    AND ($since::TIMESTAMP IS NULL OR recorded_at >= $since)
    AND ($until::TIMESTAMP IS NULL OR recorded_at < $until)
ORDER BY stream_seq
LIMIT $most;

SELECT *
FROM activity
WHERE stream_seq BETWEEN $page_first AND $page_last AND stream_seq IN (SELECT unnest($page::UBIGINT[]))
ORDER BY stream_seq, ord
LIMIT $most;
