-- The audit store: every entry of the trail and what is read from it. Rows are a function of the trail alone, so the
-- file may be deleted: it is rebuilt equal, row for row. Times are UTC in TIMESTAMP. NULL: the entry does not say.

CREATE TABLE position (
    stream VARCHAR NOT NULL,
    stream_created TIMESTAMP NOT NULL,
    last_seq UBIGINT NOT NULL
);
COMMENT ON TABLE position IS 'One row: the stream these tables are read from and its last sequence in them';

CREATE TABLE entries (
    stream_seq UBIGINT NOT NULL,
    subject VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    task_ref VARCHAR,
    task_seq UBIGINT,
    entry_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP NOT NULL,
    leaf_sha256 VARCHAR NOT NULL,
    prev_sha256 VARCHAR,
    key_id VARCHAR,
    signature VARCHAR,
    command VARCHAR,
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
    binding_mode VARCHAR,
    binding_differs VARCHAR,
    grant_id VARCHAR,
    standing VARCHAR,
    effect VARCHAR,
    decision_reason VARCHAR,
    policy_sha256 VARCHAR,
    policy_version VARCHAR,
    policies VARCHAR,
    rpc_method VARCHAR,
    server VARCHAR,
    wire VARCHAR,
    protocol_version VARCHAR,
    traceparent VARCHAR,
    created_by VARCHAR,
    body BLOB NOT NULL USING COMPRESSION zstd
);
COMMENT ON TABLE entries IS 'Every accepted entry, in the order of the stream: its place, its authority, its bytes';
COMMENT ON COLUMN entries.kind IS 'task, access, denied, control or governance: which subject it stands on';
COMMENT ON COLUMN entries.task_ref IS 'Keyed reference of the task; the task id itself is nowhere in the trail';
COMMENT ON COLUMN entries.task_seq IS 'Place in the task''s chain, from 1; NULL outside a chain';
COMMENT ON COLUMN entries.leaf_sha256 IS 'Hex SHA-256 of body';
COMMENT ON COLUMN entries.prev_sha256 IS 'leaf_sha256 of the task''s entry before';
COMMENT ON COLUMN entries.signature IS 'Base64 Ed25519 over body by key_id, as delivered; not verified here';
COMMENT ON COLUMN entries.principal_level IS 'bound, verified, vouched, asserted or claimed; so every *_level';
COMMENT ON COLUMN entries.token_hash IS 'Base64url SHA-256 of the credential (RFC 9449 ath)';
COMMENT ON COLUMN entries.acr IS 'How strongly its subject was authenticated, in the issuer''s word (RFC 9068); proved as credential_level says, as are amr and authenticated_at';
COMMENT ON COLUMN entries.amr IS 'By which methods (RFC 8176), a JSON array; NULL: the credential does not say';
COMMENT ON COLUMN entries.authenticated_at IS 'When: its auth_time';
COMMENT ON COLUMN entries.binding_differs IS 'Members in which the caller differed from the creator, by comma; empty: it matched; NULL: not compared';
COMMENT ON COLUMN entries.grant_id IS 'The grant that opened the task to somebody else than its creator';
COMMENT ON COLUMN entries.standing IS 'Of the creator''s authority, on steps of a worker, a timer or an operator: valid, lapsed, revoked or unknown';
COMMENT ON COLUMN entries.policies IS 'The policies that determined the decision, by comma';
COMMENT ON COLUMN entries.body IS 'The entry''s own bytes';

CREATE TABLE events (
    stream_seq UBIGINT NOT NULL,
    ord UINTEGER NOT NULL,
    type VARCHAR NOT NULL,
    at_time TIMESTAMP,
    task_ref VARCHAR,
    status_after VARCHAR,
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
    payload_size BIGINT,
    payload_flags VARCHAR,
    payload VARCHAR NOT NULL
);
COMMENT ON TABLE events IS 'The events of every entry, in order (stream_seq, ord)';
COMMENT ON COLUMN events.status_after IS 'The task''s status after this event';
COMMENT ON COLUMN events.times IS 'How many the folded run holds: polls, disclosures, denials; pushes of a subscription';
COMMENT ON COLUMN events.payload_sha256 IS 'Hex SHA-256 of the sealed payload''s ciphertext';
COMMENT ON COLUMN events.payload_size IS 'Bytes of the ciphertext';
COMMENT ON COLUMN events.payload_flags IS 'Kinds of secrets seen in it before it was sealed, and scanned_in_part, by comma; NULL: none seen';
COMMENT ON COLUMN events.payload IS 'The event''s JSON as written';

CREATE TABLE tasks (
    task_ref VARCHAR PRIMARY KEY,
    tenant VARCHAR NOT NULL,
    iss VARCHAR,
    sub VARCHAR,
    client_id VARCHAR,
    binding_mode VARCHAR NOT NULL,
    server VARCHAR NOT NULL,
    tool VARCHAR NOT NULL,
    task_support VARCHAR NOT NULL,
    wire VARCHAR NOT NULL,
    protocol_version VARCHAR NOT NULL,
    requested_ttl_ms BIGINT,
    granted_ttl_ms BIGINT NOT NULL,
    ttl_set_by VARCHAR,
    retention VARCHAR,
    poll_interval_ms BIGINT NOT NULL,
    token_hash VARCHAR,
    jti VARCHAR,
    created_at TIMESTAMP NOT NULL,
    created_by VARCHAR NOT NULL,
    first_seq UBIGINT NOT NULL,
    last_seq UBIGINT NOT NULL,
    entries UBIGINT NOT NULL,
    task_seq UBIGINT NOT NULL,
    leaf_sha256 VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    is_error BOOLEAN NOT NULL,
    last_updated_at TIMESTAMP NOT NULL,
    expires_at TIMESTAMP NOT NULL,
    ended_at TIMESTAMP,
    cancel_requested_at TIMESTAMP,
    revoked_at TIMESTAMP,
    expired_at TIMESTAMP,
    shredded_at TIMESTAMP,
    grants UINTEGER NOT NULL,
    holds UINTEGER NOT NULL,
    standing VARCHAR NOT NULL,
    authority_until TIMESTAMP
);
COMMENT ON TABLE tasks IS 'Every task as of its last entry, and where in the stream its entries are';
COMMENT ON COLUMN tasks.ttl_set_by IS 'What decided granted_ttl_ms: request, tool, tool_rule (the operator''s for this tool) or service';
COMMENT ON COLUMN tasks.retention IS 'JSON: milliseconds for which an ended task''s handle opens it, by status';
COMMENT ON COLUMN tasks.expires_at IS 'When the handle ends: the granted time, or the retention of the status it ended in when that is sooner';
COMMENT ON COLUMN tasks.token_hash IS 'Of the creating credential, as jti';
COMMENT ON COLUMN tasks.grants IS 'How many grants are in force';
COMMENT ON COLUMN tasks.holds IS 'How many holds keep its payloads';
COMMENT ON COLUMN tasks.standing IS 'Of the creator''s authority, as last recorded here; a credential that has ended since, or was revoked, is not seen in it';
COMMENT ON COLUMN tasks.authority_until IS 'When the creator''s latest credential ends; NULL: it does not say';
COMMENT ON COLUMN tasks.created_by IS 'Id of the creating entry';
COMMENT ON COLUMN tasks.first_seq IS 'Stream sequence of its creation; all its entries lie between first_seq and last_seq';
COMMENT ON COLUMN tasks.entries IS 'Entries of its task and access subjects';
COMMENT ON COLUMN tasks.leaf_sha256 IS 'Head of its chain: the next entry''s prev_sha256';

CREATE TABLE denials (
    stream_seq UBIGINT NOT NULL,
    ord UINTEGER NOT NULL,
    task_ref VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    times BIGINT NOT NULL
);
COMMENT ON TABLE denials IS 'Which task references refused callers claimed, by AccessDenied event; a reference need not be a task''s';
COMMENT ON COLUMN denials.reason IS 'The true reasons of the whole run, sorted; the caller was told none of them';

CREATE TABLE rejected (
    stream_seq UBIGINT NOT NULL,
    sequences UBIGINT NOT NULL,
    subject VARCHAR,
    task_ref VARCHAR,
    leaf_sha256 VARCHAR,
    reason VARCHAR NOT NULL,
    detail VARCHAR NOT NULL,
    body BLOB
);
COMMENT ON TABLE rejected IS 'Messages of the stream that are no acceptable entry, and holes in its sequence';
COMMENT ON COLUMN rejected.sequences IS 'Sequences concerned, from stream_seq on; more than one only for a hole';
COMMENT ON COLUMN rejected.task_ref IS 'From the subject alone';
COMMENT ON COLUMN rejected.reason IS 'undecodable, msg_id, subject, chain, orphan, out_of_range or missing';

-- Nothing is written to guard: its triggers exist to raise. They are a defence in depth; who owns the file can drop them.
CREATE TABLE guard (refused VARCHAR);
CREATE TRIGGER entries_kept AFTER DELETE ON entries REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('entries is append-only') FROM gone;
CREATE TRIGGER entries_unchanged AFTER UPDATE ON entries REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('entries is append-only') FROM gone;
CREATE TRIGGER events_kept AFTER DELETE ON events REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('events is append-only') FROM gone;
CREATE TRIGGER events_unchanged AFTER UPDATE ON events REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('events is append-only') FROM gone;
CREATE TRIGGER denials_kept AFTER DELETE ON denials REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('denials is append-only') FROM gone;
CREATE TRIGGER denials_unchanged AFTER UPDATE ON denials REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('denials is append-only') FROM gone;
CREATE TRIGGER rejected_kept AFTER DELETE ON rejected REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('rejected is append-only') FROM gone;
CREATE TRIGGER rejected_unchanged AFTER UPDATE ON rejected REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('rejected is append-only') FROM gone;

CREATE VIEW steps AS
SELECT
    e.stream_seq,
    v.ord,
    e.kind,
    v.type,
    v.at_time,
    e.recorded_at,
    e.entry_id,
    e.leaf_sha256,
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
    e.binding_mode,
    e.binding_differs,
    e.grant_id,
    e.standing,
    e.effect,
    e.decision_reason,
    e.policy_sha256,
    e.policy_version,
    e.policies,
    v.payload
FROM entries e
LEFT JOIN events v USING (stream_seq);
COMMENT ON VIEW steps IS 'Every event with who caused it, by what credential, allowed by which rule; an entry without events is one step';

CREATE VIEW live_tasks AS
SELECT *
FROM tasks
WHERE status IN ('working', 'input_required') AND expired_at IS NULL;
COMMENT ON VIEW live_tasks IS 'Tasks that can still change';
