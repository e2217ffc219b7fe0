-- Who looked at the trail.
--
-- Queries, exports of evidence and unsealings, each with who, for which matter, what was asked and how much was shown.
-- $sub text: only by this responder
-- $case_id text: only for this matter
-- $task ref: only unsealings of this task's payloads
-- $type one of QueryRun, BundleExported, PayloadUnsealed: only these
-- $since time: only what was recorded from then on
-- $until time: only what was recorded before
SELECT *
FROM responders
WHERE stream_seq > $after AND stream_seq <= $as_of
    AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    AND ($sub::VARCHAR IS NULL OR sub = $sub)
    AND ($case_id::VARCHAR IS NULL OR case_id = $case_id)
    AND ($task::VARCHAR IS NULL OR task_ref = $task)
    AND ($type::VARCHAR IS NULL OR type = $type)
    AND ($since::TIMESTAMP IS NULL OR recorded_at >= $since)
    AND ($until::TIMESTAMP IS NULL OR recorded_at < $until)
ORDER BY stream_seq, ord
LIMIT $most;
