-- Everything done with a token.
--
-- Denials too: where it was tried and refused.
-- $token text required: base64url SHA-256 of the token (RFC 9449 ath), or its jti
-- $iss text: its issuer, since two issuers may give the same jti; left out: any
-- $since time: only what was recorded from then on
-- $until time: only what was recorded before
SELECT stream_seq
FROM entries
WHERE stream_seq > $after AND stream_seq <= $as_of
    AND ($tenant::VARCHAR IS NULL OR tenant = $tenant)
    AND (token_hash = $token OR jti = $token)
    AND ($iss::VARCHAR IS NULL OR iss = $iss)
    AND ($since::TIMESTAMP IS NULL OR recorded_at >= $since)
    AND ($until::TIMESTAMP IS NULL OR recorded_at < $until)
ORDER BY stream_seq
LIMIT $most;

SELECT *
FROM activity
WHERE stream_seq BETWEEN $page_first AND $page_last AND stream_seq IN (SELECT unnest($page::UBIGINT[]))
ORDER BY stream_seq, ord
LIMIT $most;
