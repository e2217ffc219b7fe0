-- Whom grants named, in columns: reading that from the JSON of every grant took a third of a blast radius.

CREATE TABLE grants AS
SELECT
    stream_seq,
    ord,
    tenant,
    task_ref,
    action AS grant_id,
    json_extract_string(payload, '$.to.iss') AS to_iss,
    json_extract_string(payload, '$.to.sub') AS to_sub,
    json_extract_string(payload, '$.to.client_id') AS to_client_id
FROM notable
WHERE type = 'GrantGiven'
ORDER BY stream_seq, ord;
COMMENT ON TABLE grants IS 'Every grant that was given, whether or not it was withdrawn since, and whom it named';
COMMENT ON COLUMN grants.stream_seq IS 'Its sequence in the stream';
COMMENT ON COLUMN grants.ord IS 'Which event of its entry, from 0';
COMMENT ON COLUMN grants.tenant IS 'The task''s tenant';
COMMENT ON COLUMN grants.task_ref IS 'Keyed reference of the task';
COMMENT ON COLUMN grants.grant_id IS 'Its id';
COMMENT ON COLUMN grants.to_iss IS 'The issuer of whom it names; empty: none';
COMMENT ON COLUMN grants.to_sub IS 'The subject it names; empty: none';
COMMENT ON COLUMN grants.to_client_id IS 'The client it names; empty: none';
CREATE TRIGGER grants_kept AFTER DELETE ON grants REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('grants is append-only') FROM gone;
CREATE TRIGGER grants_unchanged AFTER UPDATE ON grants REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('grants is append-only') FROM gone;
