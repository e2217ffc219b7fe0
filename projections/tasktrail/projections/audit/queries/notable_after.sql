-- Rows of `notable` of the entries after a sequence, as tasktrail.projections.audit.notable makes them.
INSERT INTO notable BY NAME
FROM activity
WHERE
    stream_seq > $after
    AND (type IN (SELECT unnest($types)) OR (type = 'TaskCreated' AND action IS NOT NULL))
