-- Steps by their entries, as rows of the view `steps`. $sequences: those of the entries; $first, $last: the least and the
-- greatest of them.
SELECT *
FROM steps
WHERE stream_seq BETWEEN $first AND $last AND stream_seq IN (SELECT unnest($sequences::UBIGINT[]));
