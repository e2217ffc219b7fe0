-- What every timeline looks at besides its own task: revocations, policies and gaps, among them all in a table that stays small.

CREATE TABLE service_events AS
SELECT *
FROM notable
WHERE kind IN ('control', 'governance')
ORDER BY stream_seq, ord;
COMMENT ON TABLE service_events IS 'What notable holds of the service as a whole: of kind control or governance';
CREATE TRIGGER service_events_kept AFTER DELETE ON service_events REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('service_events is append-only') FROM gone;
CREATE TRIGGER service_events_unchanged AFTER UPDATE ON service_events REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    INSERT INTO guard SELECT error('service_events is append-only') FROM gone;

CREATE VIEW service_steps AS
SELECT
    stream_seq,
    ord,
    kind,
    type,
    at_time,
    recorded_at,
    entry_id,
    leaf_sha256,
    tenant,
    task_ref,
    status_after,
    trigger,
    iss,
    sub,
    principal_kind,
    principal_level,
    client_id,
    client_level,
    actor_iss,
    actor_sub,
    actor_level,
    credential_method,
    credential_verification,
    credential_level,
    revocation,
    token_hash,
    jti,
    token_expires_at,
    acr,
    amr,
    authenticated_at,
    address,
    address_level,
    NULL::VARCHAR AS binding_mode,
    binding_differs,
    grant_id,
    standing,
    effect,
    decision_reason,
    policy_sha256,
    policy_version,
    policies,
    payload
FROM service_events;
COMMENT ON VIEW service_steps IS 'The view steps, of the service as a whole; nobody is compared with a task''s creator there';
COMMENT ON COLUMN service_steps.stream_seq IS 'Its sequence in the stream';
COMMENT ON COLUMN service_steps.ord IS 'Which event of its entry, from 0; NULL: the entry has none';
COMMENT ON COLUMN service_steps.kind IS 'task, access, denied, control or governance: which subject it stands on';
COMMENT ON COLUMN service_steps.type IS 'The event, as docs/timeline.md and the trail name it';
COMMENT ON COLUMN service_steps.at_time IS 'When it became true; NULL for an entry without events';
COMMENT ON COLUMN service_steps.recorded_at IS 'When the entry was made';
COMMENT ON COLUMN service_steps.entry_id IS 'Id of its entry';
COMMENT ON COLUMN service_steps.leaf_sha256 IS 'Hex SHA-256 of the entry''s bytes';
COMMENT ON COLUMN service_steps.tenant IS 'Whose trail it is on; _ for the service as a whole';
COMMENT ON COLUMN service_steps.task_ref IS 'Keyed reference of the task';
COMMENT ON COLUMN service_steps.status_after IS 'The task''s status after it';
COMMENT ON COLUMN service_steps.trigger IS 'caller, mcp_server, worker, timer, operator or responder';
COMMENT ON COLUMN service_steps.iss IS 'Issuer of the subject, as the issuer wrote it';
COMMENT ON COLUMN service_steps.sub IS 'Its subject, or the pseudonym of it';
COMMENT ON COLUMN service_steps.principal_kind IS 'user, machine or anonymous';
COMMENT ON COLUMN service_steps.principal_level IS 'How far iss and sub are proved: bound, verified, vouched, asserted or claimed';
COMMENT ON COLUMN service_steps.client_id IS 'The OAuth client it came through';
COMMENT ON COLUMN service_steps.client_level IS 'How far client_id is proved';
COMMENT ON COLUMN service_steps.actor_iss IS 'Issuer of who acts for the subject (RFC 8693 act, the outermost)';
COMMENT ON COLUMN service_steps.actor_sub IS 'Who acts for the subject';
COMMENT ON COLUMN service_steps.actor_level IS 'How far the actor is proved';
COMMENT ON COLUMN service_steps.credential_method IS 'jwt, opaque, nkey, password, api_key or none';
COMMENT ON COLUMN service_steps.credential_verification IS 'What checking the credential found';
COMMENT ON COLUMN service_steps.credential_level IS 'How far the credential is proved';
COMMENT ON COLUMN service_steps.revocation IS 'Whether it was looked up as revoked, in the recorder''s word';
COMMENT ON COLUMN service_steps.token_hash IS 'Base64url SHA-256 of the credential (RFC 9449 ath)';
COMMENT ON COLUMN service_steps.jti IS 'The credential''s own id';
COMMENT ON COLUMN service_steps.token_expires_at IS 'When the credential ends';
COMMENT ON COLUMN service_steps.acr IS 'How strongly the subject was authenticated, in the issuer''s word';
COMMENT ON COLUMN service_steps.amr IS 'By which methods (RFC 8176), a JSON array';
COMMENT ON COLUMN service_steps.authenticated_at IS 'When: its auth_time';
COMMENT ON COLUMN service_steps.address IS 'The peer''s network address';
COMMENT ON COLUMN service_steps.address_level IS 'How far the address is proved';
COMMENT ON COLUMN service_steps.binding_mode IS 'By which comparison with the creator';
COMMENT ON COLUMN service_steps.binding_differs IS 'Members in which the caller differed from the creator, by comma; empty: it matched; NULL: not compared';
COMMENT ON COLUMN service_steps.grant_id IS 'The grant that opened the task to somebody else than its creator';
COMMENT ON COLUMN service_steps.standing IS 'What the creator''s authority was worth, on steps of a worker, a timer or an operator';
COMMENT ON COLUMN service_steps.effect IS 'The decision: allow or deny';
COMMENT ON COLUMN service_steps.decision_reason IS 'The rule that made it';
COMMENT ON COLUMN service_steps.policy_sha256 IS 'Of the policy that decided';
COMMENT ON COLUMN service_steps.policy_version IS 'Of the policy that decided';
COMMENT ON COLUMN service_steps.policies IS 'The policies that determined it, by comma';
COMMENT ON COLUMN service_steps.payload IS 'The event''s JSON as written';
