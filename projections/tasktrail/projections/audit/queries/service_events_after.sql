-- Rows of `service_events` of the entries after a sequence: what `notable` holds of the service as a whole.
INSERT INTO service_events BY NAME
FROM notable
WHERE stream_seq > $after AND kind IN ('control', 'governance')
