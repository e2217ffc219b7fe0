-- Who was shown which payload.
--
-- One row for each payload of each disclosure. payload_sha256 is that of the sealed bytes: the event that made the payload
-- names the same.
-- $task ref: only of this task
-- $sub text: only to this subject
-- $iss text: only to a subject of this issuer
-- $payload_sha256 text: only this payload
-- $since time: only what was recorded from then on
-- $until time: only what was recorded before
SELECT *
FROM disclosures
WHERE stream_seq > $after AND stream_seq <= $as_of
    AND stream_seq BETWEEN $first AND $last AND ($task::VARCHAR IS NULL OR task_ref = $task)
    AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    AND ($sub::VARCHAR IS NULL OR sub = $sub)
    AND ($iss::VARCHAR IS NULL OR iss = $iss)
    AND (
        $payload_sha256::VARCHAR IS NULL
        OR stream_seq IN (
            SELECT stream_seq
            FROM notable
            WHERE type = 'ResultDisclosed' AND $payload_sha256::VARCHAR IS NOT NULL
                AND contains(payload, $payload_sha256)
        )
    )
    AND ($payload_sha256::VARCHAR IS NULL OR payload_sha256 = $payload_sha256)
    AND ($since::TIMESTAMP IS NULL OR recorded_at >= $since)
    AND ($until::TIMESTAMP IS NULL OR recorded_at < $until)
ORDER BY stream_seq, ord, n
LIMIT $most;
