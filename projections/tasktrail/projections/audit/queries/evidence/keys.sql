-- Where keys were announced, and everything before the first signing key: so that it is shown to be the first.
WITH announced AS (
    SELECT v.stream_seq, v.action AS purpose
    FROM events v
    JOIN entries e USING (stream_seq)
    WHERE v.type = 'KeyActivated' AND e.kind = 'control' AND v.stream_seq <= $size
),
first_one AS (
    SELECT coalesce(min(stream_seq), 0) AS stream_seq FROM announced WHERE purpose = 'signing'
)
SELECT stream_seq FROM announced
UNION
SELECT unnest(range(1, (SELECT least(stream_seq, $prefix)::BIGINT FROM first_one)))
LIMIT $most
