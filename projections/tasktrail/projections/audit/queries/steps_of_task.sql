-- What happened to one task on its own subjects. $ref: task reference; $first, $last: its sequences, from `tasks`;
-- $most: how many steps at most, the first ones. Without the sequences every entry would be read.
SELECT *
FROM steps
WHERE task_ref = $ref AND kind IN ('task', 'access') AND stream_seq BETWEEN $first AND $last
ORDER BY stream_seq, ord
LIMIT $most;
