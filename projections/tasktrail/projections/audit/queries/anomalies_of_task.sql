-- Messages on one task's subjects that were not accepted as entries. $ref: task reference; $most: how many at most.
SELECT *
FROM rejected
WHERE task_ref = $ref
ORDER BY stream_seq
LIMIT $most;
