-- Where the policies were activated that decided on these entries, and their texts.
SELECT v.stream_seq, json_extract_string(v.payload, '$.sha256') AS sha256, json_extract_string(v.payload, '$.text') AS text
FROM events v
WHERE
    v.type = 'PolicyActivated'
    AND v.stream_seq <= $size
    AND json_extract_string(v.payload, '$.sha256') IN (
        SELECT policy_sha256 FROM entries WHERE stream_seq IN (SELECT unnest($sequences::UBIGINT[]))
    )
LIMIT $most
