-- Tasks, the newest first. A parameter that is NULL does not filter. $before: only those created before this stream
-- sequence, for the next page.
SELECT *
FROM tasks
WHERE ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    AND ($statuses::VARCHAR[] IS NULL OR list_contains($statuses::VARCHAR[], status))
    AND ($server::VARCHAR IS NULL OR server = $server)
    AND ($tool::VARCHAR IS NULL OR tool = $tool)
    AND ($iss::VARCHAR IS NULL OR iss = $iss)
    AND ($sub::VARCHAR IS NULL OR sub = $sub)
    AND ($client_id::VARCHAR IS NULL OR client_id = $client_id)
    AND ($created_from::TIMESTAMP IS NULL OR created_at >= $created_from)
    AND ($created_until::TIMESTAMP IS NULL OR created_at < $created_until)
    AND ($live::BOOLEAN IS NULL OR $live = (status IN ('working', 'input_required') AND expired_at IS NULL))
    AND ($opens::BOOLEAN IS NULL OR $opens = (revoked_at IS NULL AND expired_at IS NULL))
    AND ($before::UBIGINT IS NULL OR first_seq < $before)
ORDER BY first_seq DESC
LIMIT $most;
