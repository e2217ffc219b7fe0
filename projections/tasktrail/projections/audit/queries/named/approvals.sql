-- Who answered requests for input, and how we know.
--
-- An action is what the client said; it is no proof that a person said it. acr, amr and authenticated_at are the issuer's
-- words on how and when the subject authenticated, and presence_level is how far they are proved; NULL: no such word.
-- requested_… is the request that was answered.
-- $task ref: only of this task
-- $sub text: only by this subject
-- $iss text: only by a subject of this issuer
-- $since time: only what was recorded from then on
-- $until time: only what was recorded before
WITH given AS MATERIALIZED (
    SELECT *
    FROM answers
    WHERE stream_seq > $after AND stream_seq <= $as_of
        AND stream_seq BETWEEN $first AND $last AND ($task::VARCHAR IS NULL OR task_ref = $task)
        AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
        AND ($sub::VARCHAR IS NULL OR sub = $sub)
        AND ($iss::VARCHAR IS NULL OR iss = $iss)
        AND ($since::TIMESTAMP IS NULL OR recorded_at >= $since)
        AND ($until::TIMESTAMP IS NULL OR recorded_at < $until)
    ORDER BY stream_seq, ord
    LIMIT $most
)
SELECT
    g.*,
    t.server,
    t.tool,
    asked.stream_seq AS requested_seq,
    asked.at_time AS requested_at,
    asked.payload_sha256 AS request_sha256
FROM given g
LEFT JOIN (
    SELECT task_ref, server, tool FROM tasks WHERE task_ref IN (SELECT task_ref FROM given)
) AS t
    ON t.task_ref = g.task_ref
LEFT JOIN (
    SELECT *
    FROM notable
    WHERE type = 'InputRequested' AND stream_seq <= $last AND task_ref IN (SELECT task_ref FROM given)
) AS asked
    ON asked.task_ref = g.task_ref AND asked.input_key = g.input_key
ORDER BY g.stream_seq, g.ord;
