-- How many bytes these messages have.
SELECT
    coalesce((SELECT sum(octet_length(body)) FROM entries WHERE stream_seq IN (SELECT unnest($sequences::UBIGINT[]))), 0)
    + coalesce((SELECT sum(octet_length(body)) FROM rejected WHERE stream_seq IN (SELECT unnest($sequences::UBIGINT[]))), 0)
