-- Everything from a network address.
--
-- The peer's address as the service or an MCP server saw it; address_level says how far it is proved.
-- $address text required: the address, as it is recorded
-- $since time: only what was recorded from then on
-- $until time: only what was recorded before
SELECT stream_seq
FROM entries
WHERE stream_seq > $after AND stream_seq <= $as_of
    AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    AND address = $address
    AND ($since::TIMESTAMP IS NULL OR recorded_at >= $since)
    AND ($until::TIMESTAMP IS NULL OR recorded_at < $until)
ORDER BY stream_seq
LIMIT $most;

SELECT *
FROM activity
WHERE stream_seq BETWEEN $page_first AND $page_last AND stream_seq IN (SELECT unnest($page::UBIGINT[]))
ORDER BY stream_seq, ord
LIMIT $most;
