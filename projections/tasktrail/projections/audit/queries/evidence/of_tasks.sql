-- Every message on the subjects of these tasks up to a sequence, also those that were refused as entries.
SELECT stream_seq
FROM entries
WHERE
    stream_seq BETWEEN (SELECT min(first_seq) FROM tasks WHERE task_ref IN (SELECT unnest($refs::VARCHAR[])))
    AND $size
    AND kind IN ('task', 'access')
    AND task_ref IN (SELECT unnest($refs::VARCHAR[]))
UNION ALL
SELECT stream_seq
FROM rejected
WHERE stream_seq <= $size AND reason <> 'missing' AND task_ref IN (SELECT unnest($refs::VARCHAR[]))
LIMIT $most
