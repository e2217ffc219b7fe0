-- In which denials a task reference was claimed, and how often. $ref: task reference; $most: how many at most, the first
-- ones. `times` counts this reference only; the run may hold others.
SELECT stream_seq, ord, times
FROM denials
WHERE task_ref = $ref
ORDER BY stream_seq, ord
LIMIT $most;
