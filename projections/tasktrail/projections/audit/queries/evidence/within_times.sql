-- The first and the last entry that was recorded between two times; clocks of several processes need not agree.
SELECT min(stream_seq), max(stream_seq)
FROM entries
WHERE stream_seq <= $size AND recorded_at >= $since AND recorded_at < $until
