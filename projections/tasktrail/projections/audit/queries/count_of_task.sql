-- How many steps, denials and anomalies one task has in all. $ref: task reference; $first, $last: its sequences, from
-- `tasks`.
SELECT
    (
        SELECT count(*)
        FROM steps
        WHERE task_ref = $ref AND kind IN ('task', 'access') AND stream_seq BETWEEN $first AND $last
    )
    + (SELECT count(*) FROM denials WHERE task_ref = $ref)
    + (SELECT count(*) FROM rejected WHERE task_ref = $ref);
