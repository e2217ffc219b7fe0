-- What was recorded about these tasks elsewhere: refused accesses that named them, revocations of whoever made them.
SELECT stream_seq
FROM denials
WHERE stream_seq <= $size AND task_ref IN (SELECT unnest($refs::VARCHAR[]))
UNION
SELECT unnest([revoked_seq, lifted_seq]) AS stream_seq
FROM revoked_tasks
WHERE revoked_seq <= $size AND task_ref IN (SELECT unnest($refs::VARCHAR[]))
LIMIT $most
