-- Messages by sequence, as they were delivered; reason says why one was refused as an entry.
SELECT stream_seq, subject, body, entry_id AS msg_id, coalesce(key_id, '') AS key_id, coalesce(signature, '') AS signature, '' AS reason
FROM entries
WHERE stream_seq IN (SELECT unnest($sequences::UBIGINT[]))
UNION ALL
SELECT stream_seq, coalesce(subject, ''), body, '', '', '', reason
FROM rejected
WHERE reason <> 'missing' AND body IS NOT NULL AND stream_seq IN (SELECT unnest($sequences::UBIGINT[]))
ORDER BY stream_seq
