-- What is missing from the trail, or may be.
--
-- Holes of the stream, messages that are no acceptable entries, and what the service itself said. A hole may have been
-- anybody's, and is shown to everybody; so is what the service says of itself as a whole.
-- $gap one of hole, rejected, said, said_rejected: only those of this kind
SELECT *
FROM gaps
WHERE stream_seq > $after AND stream_seq <= $as_of
    AND (
        $tenant::VARCHAR IS NULL
        OR gap = 'hole'
        OR (gap = 'rejected' AND split_part(subject, '.', 4) = $tenant_token)
        OR (gap IN ('said', 'said_rejected') AND tenant IN ($tenant, '_'))
    )
    AND ($gap::VARCHAR IS NULL OR gap = $gap)
ORDER BY stream_seq
LIMIT $most;
