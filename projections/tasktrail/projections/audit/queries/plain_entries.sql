-- Rows of `entries` from plain ones: what an entry says of its authority is read from its bytes here, as
-- tasktrail.projections.audit.columns.entry_row reads it. A member that is left out holds its default.
INSERT INTO entries BY NAME
SELECT
    stream_seq,
    subject,
    kind,
    tenant,
    task_ref,
    task_seq,
    entry_id,
    recorded_at,
    leaf_sha256,
    prev_sha256,
    key_id,
    signature,
    command,
    a.trigger,
    a.principal.iss,
    a.principal.sub,
    CASE WHEN a.principal IS NOT NULL THEN coalesce(a.principal.kind, 'user') END AS principal_kind,
    a.principal.level AS principal_level,
    a.client.client_id,
    a.client.level AS client_level,
    a.actors[1].iss AS actor_iss,
    a.actors[1].sub AS actor_sub,
    a.actors[1].level AS actor_level,
    a.credential.method AS credential_method,
    a.credential.verification AS credential_verification,
    a.credential.level AS credential_level,
    CASE WHEN a.credential IS NOT NULL THEN coalesce(a.credential.revocation, 'unknown') END AS revocation,
    a.credential.token_hash,
    a.credential.jti,
    CASE
        WHEN a.credential.exp BETWEEN -62135596800 AND 253402300799 THEN make_timestamp(a.credential.exp * 1000000)
    END AS token_expires_at,
    a.credential.acr,
    a.credential.amr,
    CASE
        WHEN a.credential.auth_time BETWEEN -62135596800 AND 253402300799
            THEN make_timestamp(a.credential.auth_time * 1000000)
    END AS authenticated_at,
    a.request.address,
    CASE WHEN a.request.address IS NOT NULL THEN coalesce(a.request.address_level, 'claimed') END AS address_level,
    a.binding.mode AS binding_mode,
    CASE WHEN a.binding IS NOT NULL THEN coalesce(array_to_string(a.binding.differs, ', '), '') END AS binding_differs,
    a.grant AS grant_id,
    a.standing,
    a.decision.effect,
    a.decision.reason AS decision_reason,
    a.decision.policy_sha256,
    a.decision.policy_version,
    nullif(array_to_string(a.decision.policies, ', '), '') AS policies,
    a.request.method AS rpc_method,
    a.request.server,
    a.request.wire,
    a.request.protocol_version,
    a.request.traceparent,
    a.created_by,
    body
FROM (
    SELECT
        *,
        json_transform(
            decode(body),
            '{
                "authority": {
                    "trigger": "VARCHAR",
                    "principal": {"iss": "VARCHAR", "sub": "VARCHAR", "kind": "VARCHAR", "level": "VARCHAR"},
                    "client": {"client_id": "VARCHAR", "level": "VARCHAR"},
                    "actors": [{"iss": "VARCHAR", "sub": "VARCHAR", "level": "VARCHAR"}],
                    "credential": {
                        "method": "VARCHAR", "verification": "VARCHAR", "level": "VARCHAR", "revocation": "VARCHAR",
                        "token_hash": "VARCHAR", "jti": "VARCHAR", "exp": "BIGINT", "acr": "VARCHAR", "amr": "JSON",
                        "auth_time": "BIGINT"
                    },
                    "created_by": "VARCHAR",
                    "binding": {"mode": "VARCHAR", "differs": ["VARCHAR"]},
                    "grant": "VARCHAR",
                    "standing": "VARCHAR",
                    "decision": {
                        "effect": "VARCHAR", "reason": "VARCHAR", "policy_sha256": "VARCHAR",
                        "policy_version": "VARCHAR", "policies": ["VARCHAR"]
                    },
                    "request": {
                        "method": "VARCHAR", "server": "VARCHAR", "wire": "VARCHAR", "protocol_version": "VARCHAR",
                        "traceparent": "VARCHAR", "address": "VARCHAR", "address_level": "VARCHAR"
                    }
                }
            }'
        ).authority AS a
    FROM given
)
