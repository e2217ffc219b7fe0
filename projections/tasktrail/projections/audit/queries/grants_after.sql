-- Rows of `grants` of the entries after a sequence, from `notable`.
INSERT INTO grants BY NAME
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
WHERE stream_seq > $after AND type = 'GrantGiven'
