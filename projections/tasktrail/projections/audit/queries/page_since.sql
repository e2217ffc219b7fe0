-- How far the next page after a stream sequence goes. $after: that sequence; $tenant: NULL for all; $most: how many
-- messages at most.
SELECT count(*), max(stream_seq)
FROM (
    SELECT stream_seq FROM entries WHERE stream_seq > $after AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    UNION ALL
    SELECT stream_seq FROM rejected WHERE stream_seq > $after
    ORDER BY stream_seq
    LIMIT $most
);
