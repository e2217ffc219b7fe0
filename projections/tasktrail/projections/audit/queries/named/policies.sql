-- Which policy decided when.
--
-- Those of the service as a whole (tenant _) are everybody's to see. Before the first one the built-in policy decides.
-- $sha256 text: only the policy whose text has this hex SHA-256
SELECT *
FROM policies
WHERE stream_seq > $after AND stream_seq <= $as_of
    AND ($tenant::VARCHAR IS NULL OR tenant IN ($tenant, '_'))
    AND ($sha256::VARCHAR IS NULL OR sha256 = $sha256)
ORDER BY stream_seq, ord
LIMIT $most;
