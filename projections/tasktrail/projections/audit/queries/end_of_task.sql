-- The sequence with which the first $most entries of a task end. $ref: task reference; $first, $last: its sequences, from
-- `tasks`.
SELECT max(stream_seq)
FROM (
    SELECT stream_seq
    FROM entries
    WHERE task_ref = $ref AND kind IN ('task', 'access') AND stream_seq BETWEEN $first AND $last
    ORDER BY stream_seq
    LIMIT $most
);
