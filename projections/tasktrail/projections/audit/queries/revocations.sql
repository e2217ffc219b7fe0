-- Every revocation made or lifted, in order. $tenants: whose; $most: how many at most, the newest.
SELECT *
FROM (
    SELECT *
    FROM service_steps
    WHERE kind = 'governance'
        AND type IN ('PrincipalRevoked', 'RevocationLifted')
        AND list_contains($tenants::VARCHAR[], tenant)
    ORDER BY stream_seq DESC, ord DESC
    LIMIT $most
)
ORDER BY stream_seq, ord;
