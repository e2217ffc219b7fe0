-- What the named queries need: columns of `tasks`, filled from the entries that are there, and views for people, each
-- column with what it means.

ALTER TABLE tasks ADD COLUMN tool_sha256 VARCHAR;
ALTER TABLE tasks ADD COLUMN trace_id VARCHAR;
ALTER TABLE tasks ADD COLUMN created_leaf_sha256 VARCHAR;
COMMENT ON COLUMN tasks.tool_sha256 IS 'Hex SHA-256 of the tool''s definition when the task was created';
COMMENT ON COLUMN tasks.trace_id IS 'W3C trace id of the creating request, in its caller''s words: tasks of one piece of work share it';
COMMENT ON COLUMN tasks.created_leaf_sha256 IS 'Hex SHA-256 of the creating entry''s bytes';

CREATE VIEW activity AS
SELECT
    e.stream_seq,
    v.ord,
    coalesce(v.at_time, e.recorded_at) AS at_time,
    e.kind,
    v.type,
    e.tenant,
    e.task_ref,
    v.status_after,
    e.trigger,
    e.iss,
    e.sub,
    e.principal_kind,
    e.principal_level,
    e.client_id,
    e.client_level,
    e.actor_iss,
    e.actor_sub,
    e.actor_level,
    e.credential_method,
    e.credential_verification,
    e.credential_level,
    e.revocation,
    e.token_hash,
    e.jti,
    e.token_expires_at,
    e.acr,
    e.amr,
    e.authenticated_at,
    e.address,
    e.address_level,
    e.binding_differs,
    e.grant_id,
    e.standing,
    e.effect,
    e.decision_reason,
    e.policy_version,
    e.policy_sha256,
    e.policies,
    e.server,
    e.traceparent,
    v.input_key,
    v.method,
    v.action,
    v.reason,
    v.code,
    v.times,
    v.first_at,
    v.last_at,
    v.payload_name,
    v.payload_sha256,
    e.recorded_at,
    e.entry_id,
    e.leaf_sha256,
    v.payload
FROM entries e
LEFT JOIN events v USING (stream_seq);
COMMENT ON VIEW activity IS 'Every event: who caused it, by what credential, from where, allowed by which rule';

CREATE TABLE notable (
    stream_seq UBIGINT NOT NULL,
    ord UINTEGER NOT NULL,
    at_time TIMESTAMP NOT NULL,
    kind VARCHAR NOT NULL,
    type VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    task_ref VARCHAR,
    status_after VARCHAR,
    trigger VARCHAR NOT NULL,
    iss VARCHAR,
    sub VARCHAR,
    principal_kind VARCHAR,
    principal_level VARCHAR,
    client_id VARCHAR,
    client_level VARCHAR,
    actor_iss VARCHAR,
    actor_sub VARCHAR,
    actor_level VARCHAR,
    credential_method VARCHAR,
    credential_verification VARCHAR,
    credential_level VARCHAR,
    revocation VARCHAR,
    token_hash VARCHAR,
    jti VARCHAR,
    token_expires_at TIMESTAMP,
    acr VARCHAR,
    amr VARCHAR,
    authenticated_at TIMESTAMP,
    address VARCHAR,
    address_level VARCHAR,
    binding_differs VARCHAR,
    grant_id VARCHAR,
    standing VARCHAR,
    effect VARCHAR,
    decision_reason VARCHAR,
    policy_version VARCHAR,
    policy_sha256 VARCHAR,
    policies VARCHAR,
    server VARCHAR,
    traceparent VARCHAR,
    input_key VARCHAR,
    method VARCHAR,
    action VARCHAR,
    reason VARCHAR,
    code BIGINT,
    times BIGINT,
    first_at TIMESTAMP,
    last_at TIMESTAMP,
    payload_name VARCHAR,
    payload_sha256 VARCHAR,
    recorded_at TIMESTAMP NOT NULL,
    entry_id VARCHAR NOT NULL,
    leaf_sha256 VARCHAR NOT NULL,
    payload VARCHAR NOT NULL
);
COMMENT ON TABLE notable IS 'What the view activity shows of the events that are looked for over the whole trail by what they are';
CREATE TRIGGER notable_kept AFTER DELETE ON notable REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('notable is append-only') FROM gone;
CREATE TRIGGER notable_unchanged AFTER UPDATE ON notable REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('notable is append-only') FROM gone;

CREATE VIEW answers AS
SELECT
    a.stream_seq,
    a.ord,
    a.at_time,
    a.tenant,
    a.task_ref,
    a.input_key,
    a.method,
    a.action,
    a.iss,
    a.sub,
    a.principal_kind,
    a.principal_level,
    a.client_id,
    a.client_level,
    a.actor_iss,
    a.actor_sub,
    a.actor_level,
    a.credential_method,
    a.credential_verification,
    a.credential_level,
    a.acr,
    a.amr,
    a.authenticated_at,
    CASE WHEN coalesce(a.acr, a.amr, a.authenticated_at::VARCHAR) IS NOT NULL THEN a.credential_level END AS presence_level,
    a.token_hash,
    a.jti,
    a.address,
    a.address_level,
    a.binding_differs,
    a.grant_id,
    a.effect,
    a.decision_reason,
    a.policy_version,
    a.payload_sha256 AS response_sha256,
    a.recorded_at,
    a.entry_id,
    a.leaf_sha256
FROM notable a
WHERE a.type = 'InputResponded';
COMMENT ON VIEW answers IS 'Every answer to a request for input: what the client said, who that was and how far that is proved';

CREATE VIEW disclosures AS
SELECT
    a.stream_seq,
    a.ord,
    a.n,
    a.at_time,
    a.tenant,
    a.task_ref,
    json_extract_string(a.payload, '$.payloads[' || a.n || ']') AS payload_name,
    json_extract_string(a.payload, '$.sha256[' || a.n || ']') AS payload_sha256,
    json_extract(a.payload, '$.nth')::BIGINT AS nth,
    a.times,
    a.method,
    a.grant_id,
    a.binding_differs,
    a.trigger,
    a.iss,
    a.sub,
    a.principal_level,
    a.client_id,
    a.client_level,
    a.actor_iss,
    a.actor_sub,
    a.actor_level,
    a.credential_method,
    a.credential_verification,
    a.credential_level,
    a.token_hash,
    a.jti,
    a.address,
    a.address_level,
    a.decision_reason,
    a.policy_version,
    a.recorded_at,
    a.entry_id,
    a.leaf_sha256
FROM (
    SELECT s.*, unnest(range(greatest(1, json_array_length(s.payload, '$.payloads')::BIGINT))) AS n
    FROM notable s
    WHERE s.type = 'ResultDisclosed'
) AS a;
COMMENT ON VIEW disclosures IS 'Every payload that was shown, to whom; one row for each payload';

CREATE VIEW responders AS
SELECT
    a.stream_seq,
    a.ord,
    a.at_time,
    a.tenant,
    a.type,
    json_extract_string(a.payload, '$.case_id') AS case_id,
    coalesce(json_extract_string(a.payload, '$.query'), json_extract_string(a.payload, '$.scope')) AS query,
    json_extract(a.payload, '$.parameters')::VARCHAR AS parameters,
    json_extract_string(a.payload, '$.task_ref') AS task_ref,
    json_extract(a.payload, '$.payloads')::VARCHAR AS payloads,
    json_extract(a.payload, '$.sha256')::VARCHAR AS payloads_sha256,
    json_extract_string(a.payload, '$.bundle_sha256') AS bundle_sha256,
    a.times AS shown,
    json_extract_string(a.payload, '$.reason') AS reason,
    a.trigger,
    a.iss,
    a.sub,
    a.principal_level,
    a.client_id,
    a.client_level,
    a.actor_iss,
    a.actor_sub,
    a.actor_level,
    a.credential_method,
    a.credential_verification,
    a.credential_level,
    a.token_hash,
    a.jti,
    a.address,
    a.address_level,
    a.decision_reason,
    a.policy_version,
    a.recorded_at,
    a.entry_id,
    a.leaf_sha256
FROM notable a
WHERE a.kind = 'control' AND a.type IN ('QueryRun', 'BundleExported', 'PayloadUnsealed');
COMMENT ON VIEW responders IS 'Who looked at the trail, exported evidence or was shown what is sealed';

CREATE VIEW policies AS
SELECT
    a.stream_seq,
    a.ord,
    a.at_time,
    a.tenant,
    json_extract_string(a.payload, '$.version') AS version,
    json_extract_string(a.payload, '$.sha256') AS sha256,
    json_extract_string(a.payload, '$.schema_sha256') AS schema_sha256,
    json_extract_string(a.payload, '$.reason') AS reason,
    lead(a.stream_seq) OVER following AS until_seq,
    lead(a.at_time) OVER following AS until_time,
    a.trigger,
    a.iss,
    a.sub,
    a.principal_level,
    a.client_id,
    a.client_level,
    a.actor_iss,
    a.actor_sub,
    a.actor_level,
    a.credential_method,
    a.credential_verification,
    a.credential_level,
    a.token_hash,
    a.jti,
    a.address,
    a.address_level,
    a.decision_reason,
    a.policy_version,
    a.recorded_at,
    a.entry_id,
    a.leaf_sha256
FROM notable a
WHERE a.type = 'PolicyActivated'
WINDOW following AS (PARTITION BY a.tenant ORDER BY a.stream_seq, a.ord);
COMMENT ON VIEW policies IS 'Every policy, from when until when it decided';

CREATE VIEW revocations AS
SELECT
    a.stream_seq,
    a.ord,
    a.at_time,
    json_extract_string(a.payload, '$.revocation') AS revocation,
    json_extract_string(a.payload, '$.kind') AS revoked_kind,
    a.tenant AS recorded_tenant,
    coalesce(json_extract_string(a.payload, '$.tenant'), '') AS tenant,
    coalesce(json_extract_string(a.payload, '$.iss'), '') AS revoked_iss,
    coalesce(json_extract_string(a.payload, '$.sub'), '') AS revoked_sub,
    coalesce(json_extract_string(a.payload, '$.client_id'), '') AS revoked_client_id,
    coalesce(json_extract_string(a.payload, '$.token_hash'), '') AS revoked_token_hash,
    coalesce(json_extract_string(a.payload, '$.jti'), '') AS revoked_jti,
    json_extract_string(a.payload, '$.reason') AS reason,
    lifted.stream_seq AS lifted_seq,
    lifted.at_time AS lifted_at,
    lifted.stream_seq IS NULL AS in_force,
    a.trigger,
    a.iss,
    a.sub,
    a.principal_level,
    a.client_id,
    a.client_level,
    a.actor_iss,
    a.actor_sub,
    a.actor_level,
    a.credential_method,
    a.credential_verification,
    a.credential_level,
    a.token_hash,
    a.jti,
    a.address,
    a.address_level,
    a.decision_reason,
    a.policy_version,
    a.recorded_at,
    a.entry_id,
    a.leaf_sha256
FROM notable a
LEFT JOIN (
    SELECT action, min(stream_seq) AS stream_seq, min(at_time) AS at_time
    FROM notable
    WHERE type = 'RevocationLifted'
    GROUP BY action
) AS lifted
    ON lifted.action = json_extract_string(a.payload, '$.revocation')
WHERE a.type = 'PrincipalRevoked';
COMMENT ON VIEW revocations IS 'Every revocation of a principal, a client or a token, and whether it holds';

CREATE VIEW handles AS
SELECT
    first_seq AS stream_seq,
    created_at,
    tenant,
    task_ref,
    server,
    tool,
    tool_sha256,
    status,
    is_error,
    iss,
    sub,
    client_id,
    binding_mode,
    token_hash,
    jti,
    trace_id,
    revoked_at IS NULL AND expired_at IS NULL AS opens,
    status IN ('working', 'input_required') AND expired_at IS NULL AS live,
    grants,
    standing,
    authority_until,
    expires_at,
    ended_at,
    revoked_at,
    expired_at,
    shredded_at,
    last_updated_at,
    last_seq,
    created_by AS entry_id,
    created_leaf_sha256 AS leaf_sha256
FROM tasks;
COMMENT ON VIEW handles IS 'Every task with its handle: what it runs, whose it is, whether it opens still';

CREATE VIEW revoked_tasks AS
SELECT t.task_ref, t.first_seq AS stream_seq, t.tenant, r.revocation, r.stream_seq AS revoked_seq, r.lifted_seq
FROM tasks t
JOIN revocations r
    ON r.revoked_kind = 'principal' AND r.revoked_sub <> ''
    AND r.revoked_sub = t.sub AND r.revoked_iss = coalesce(t.iss, '')
WHERE r.tenant IN ('', t.tenant)
UNION ALL
SELECT t.task_ref, t.first_seq, t.tenant, r.revocation, r.stream_seq, r.lifted_seq
FROM tasks t
JOIN revocations r
    ON r.revoked_kind = 'client' AND r.revoked_client_id <> '' AND r.revoked_client_id = t.client_id
WHERE r.tenant IN ('', t.tenant) AND r.revoked_iss IN ('', coalesce(t.iss, ''))
UNION ALL
SELECT t.task_ref, t.first_seq, t.tenant, r.revocation, r.stream_seq, r.lifted_seq
FROM tasks t
JOIN revocations r
    ON r.revoked_kind = 'token' AND r.revoked_token_hash <> '' AND r.revoked_token_hash = t.token_hash
WHERE r.tenant IN ('', t.tenant)
UNION ALL
SELECT t.task_ref, t.first_seq, t.tenant, r.revocation, r.stream_seq, r.lifted_seq
FROM tasks t
JOIN revocations r
    ON r.revoked_kind = 'token' AND r.revoked_token_hash = '' AND r.revoked_jti <> ''
    AND r.revoked_jti = t.jti AND r.revoked_iss = coalesce(t.iss, '')
WHERE r.tenant IN ('', t.tenant);
COMMENT ON VIEW revoked_tasks IS 'Which revocation names which task''s creator, client or creating credential';

CREATE VIEW gaps AS
SELECT
    stream_seq,
    CASE WHEN reason = 'missing' THEN 'hole' ELSE 'rejected' END AS gap,
    sequences,
    NULL::VARCHAR AS tenant,
    subject,
    task_ref,
    reason,
    detail AS what,
    NULL::TIMESTAMP AS since,
    NULL::TIMESTAMP AS until,
    NULL::VARCHAR AS entry_id,
    leaf_sha256
FROM rejected
UNION ALL
SELECT
    a.stream_seq,
    CASE a.type WHEN 'GapFound' THEN 'said' ELSE 'said_rejected' END,
    NULL,
    a.tenant,
    NULL,
    NULL,
    a.reason,
    CASE a.type WHEN 'GapFound' THEN a.action ELSE 'message ' || json_extract_string(a.payload, '$.stream_seq') END,
    a.first_at,
    a.last_at,
    a.entry_id,
    a.leaf_sha256
FROM notable a
WHERE a.type IN ('GapFound', 'EntryRejected') AND a.kind = 'control';
COMMENT ON VIEW gaps IS 'What is missing or may be: holes of the stream, messages that are no acceptable entries, and what the service said';

CREATE OR REPLACE VIEW live_tasks AS
SELECT *
FROM handles
WHERE live;
COMMENT ON VIEW live_tasks IS 'Tasks that can still change';

-- From here on for each range of sequences: a store of ten million entries is filled without holding them in memory.

UPDATE tasks
SET tool_sha256 = nullif(json_extract_string(v.payload, '$.tool_sha256'), ''),
    trace_id = nullif(split_part(e.traceparent, '-', 2), ''),
    created_leaf_sha256 = e.leaf_sha256
FROM entries AS e, events AS v
WHERE e.stream_seq = tasks.first_seq AND v.stream_seq = tasks.first_seq AND v.ord = 0
    AND tasks.first_seq BETWEEN $first AND $last AND e.stream_seq BETWEEN $first AND $last
    AND v.stream_seq BETWEEN $first AND $last;

INSERT INTO notable
SELECT *
FROM activity
WHERE stream_seq BETWEEN $first AND $last AND type IN (
    'AccessDenied', 'KeyActivated', 'GapFound', 'QueryRun', 'BundleExported', 'PayloadUnsealed', 'EntryRejected',
    'PolicyActivated', 'PrincipalRevoked', 'RevocationLifted', 'AuthorityChanged', 'CancelRequested', 'GrantGiven',
    'InputRequested', 'InputResponded', 'ResultDisclosed', 'SubscriptionOpened'
)
ORDER BY stream_seq, ord;
