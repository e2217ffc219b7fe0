-- Holes in the stream's sequence from $first on. $most: how many at most, the first ones.
SELECT *
FROM rejected
WHERE reason = 'missing' AND stream_seq + sequences > $first
ORDER BY stream_seq
LIMIT $most;
