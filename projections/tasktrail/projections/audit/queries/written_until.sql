-- When the last entry was made.
SELECT recorded_at
FROM entries
ORDER BY stream_seq DESC
LIMIT 1;
