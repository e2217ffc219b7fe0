-- Everything after a stream sequence, in order. $after: that sequence; $until: the last one; $tenant: NULL for all.
SELECT *
FROM steps
WHERE stream_seq > $after AND stream_seq <= $until AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
ORDER BY stream_seq, ord;
