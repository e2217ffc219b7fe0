-- Who was denied while claiming one task reference. $ref: task reference; $most: how many at most, the first ones.
-- `times` counts this reference only; the run may hold others.
SELECT s.*, d.times
FROM denials d
JOIN steps s ON s.stream_seq = d.stream_seq AND s.ord = d.ord
WHERE d.task_ref = $ref
ORDER BY d.stream_seq, d.ord
LIMIT $most;
