-- Whether anything is recorded under a task reference: one row with a sequence, or none.
--
-- $ref ref required: the reference
SELECT stream_seq
FROM (
    SELECT first_seq AS stream_seq FROM tasks WHERE task_ref = $ref
    UNION ALL
    SELECT stream_seq FROM denials WHERE task_ref = $ref
    UNION ALL
    SELECT stream_seq FROM rejected WHERE task_ref = $ref
)
WHERE stream_seq > $after
LIMIT least($most, 1);
