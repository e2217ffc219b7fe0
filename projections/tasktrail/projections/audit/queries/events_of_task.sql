-- The events of those entries, in no order. $ref: task reference; $first, $last: its sequences, from `tasks`. To read them
-- apart costs two thirds of what joining them does: a join reads all events between the sequences, and is more to plan.
SELECT stream_seq, ord, type, at_time, status_after, payload
FROM events
WHERE task_ref = $ref AND stream_seq BETWEEN $first AND $last;
