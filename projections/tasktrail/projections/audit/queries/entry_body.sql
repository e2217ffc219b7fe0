-- The bytes of one entry. $entry_id: its id.
SELECT body
FROM entries
WHERE entry_id = $entry_id
ORDER BY stream_seq
LIMIT 1;
