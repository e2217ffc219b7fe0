-- Everything after a stream sequence that was not accepted, in order. $after: that sequence; $until: the last one.
SELECT *
FROM rejected
WHERE stream_seq > $after AND stream_seq <= $until
ORDER BY stream_seq;
