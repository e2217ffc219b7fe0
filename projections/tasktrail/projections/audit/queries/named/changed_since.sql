-- What changed since a time, a sequence or a checkpoint.
--
-- Every event recorded from the time on, or after the sequence; the leaves of a checkpoint of size n are the sequences 1
-- to n. Messages that were not accepted as entries are in gaps.
--
-- Exactly one of: time, sequence, size
-- $time time: what was recorded from then on
-- $sequence sequence: what comes after this sequence of the stream
-- $size sequence: what came after the checkpoint of this size
SELECT stream_seq
FROM entries
WHERE stream_seq > $after AND stream_seq <= $as_of
    AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    AND ($time::TIMESTAMP IS NULL OR recorded_at >= $time)
    AND stream_seq > coalesce($sequence::UBIGINT, $size::UBIGINT, 0)
ORDER BY stream_seq
LIMIT $most;

SELECT *
FROM activity
WHERE stream_seq BETWEEN $page_first AND $page_last AND stream_seq IN (SELECT unnest($page::UBIGINT[]))
ORDER BY stream_seq, ord
LIMIT $most;
