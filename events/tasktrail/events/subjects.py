"""Names in JetStream: streams, buckets, the subject grammar, and the keyed reference that stands for a task id.

Guarantees: no caller's text ever becomes a subject token; a task id appears in no subject; two different tenants
never share a token. Needs nothing.

    task_subject("acme", task_ref(key, task_id))  ->  "trail.1.task.acme.k5x…"
"""

import base64
import hashlib
import hmac
import re

TRAIL = "TRAIL"
KEYS = "KEYS"
CURRENT = "CURRENT"
PAYLOADS = "PAYLOADS"
TIMERS = "TIMERS"
WORK = "WORK"
GENERATION = 1

ANONYMOUS_TENANT = "_"
DEFAULT_TENANT = "default"

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_ENCODED = "x-"
DIGEST = f"{_ENCODED}-"
"""What the token of a name begins with that is too long to be one: a digest follows."""
_ID_BYTES = 20
_KINDS = frozenset({"task", "access", "denied", "control", "governance"})
TASK_ID_LENGTH = 32
_TASK_ID = re.compile(rf"[a-z2-7]{{{TASK_ID_LENGTH}}}")


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


def framed(*parts: str) -> bytes:
    """Length-prefixed parts: no two different sequences give the same bytes."""
    out = bytearray()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        out += len(raw).to_bytes(4, "big") + raw
    return bytes(out)


def tenant_token(tenant: str) -> str:
    """One subject token for a tenant: plain names as they are, all others base32 under `x-`, by digest under `x--`."""
    if tenant == ANONYMOUS_TENANT:
        return tenant
    if _PLAIN.fullmatch(tenant) and not tenant.startswith(_ENCODED):
        return tenant
    raw = tenant.encode("utf-8", "surrogatepass")
    if len(raw) <= 40:  # noqa: PLR2004 - a subject's token stays short
        return _ENCODED + _base32(raw)
    return f"{DIGEST}{_base32(hashlib.sha256(raw).digest())}"


def token_text(token: str) -> str:
    """The text a token stands for; a token that holds only a digest stands for itself."""
    if not token.startswith(_ENCODED) or token.startswith(DIGEST):
        return token
    encoded = token.removeprefix(_ENCODED).upper()
    try:
        text = base64.b32decode(encoded + "=" * (-len(encoded) % 8)).decode("utf-8", "surrogatepass")
    except ValueError:
        return token
    return text if tenant_token(text) == token else token


def task_id(key: bytes, *parts: str) -> str:
    """A new handle: 160 bits of HMAC-SHA256 over `parts` (identity context and command id) under a secret key.

    Derived, not drawn, so that a repeated creation names the task it already made. 32 characters, base32, lower case.
    """
    return _base32(hmac.digest(key, b"task-id\0" + framed(*parts), "sha256")[:_ID_BYTES])


def is_task_id(text: str) -> bool:
    """Whether `text` has the form of a handle of ours."""
    return _TASK_ID.fullmatch(text) is not None


def task_ref(key: bytes, task: str) -> str:
    """The keyed reference of a task id: HMAC-SHA256, 160 bits, 32 characters of base32."""
    return _base32(hmac.digest(key, b"task-ref\0" + task.encode("utf-8", "surrogatepass"), "sha256")[:_ID_BYTES])


def is_task_ref(text: str) -> bool:
    """Whether `text` has the form of a reference. References and ids look alike; which is which, only a key tells."""
    return _TASK_ID.fullmatch(text) is not None


def entry_id(scope: str, command_id: str) -> str:
    """The id of the entry that a command makes, and its `Nats-Msg-Id`: 160 bits over scope and command id."""
    return _base32(hashlib.sha256(b"entry\0" + framed(scope, command_id)).digest()[:_ID_BYTES])


def task_subject(tenant: str, ref: str) -> str:
    """Transitions and messages of one task."""
    return f"trail.{GENERATION}.task.{tenant_token(tenant)}.{ref}"


def any_tenant_subject(ref: str) -> str:
    """The one task subject with this reference, whoever's it is: the filter of a look-up by handle."""
    return f"trail.{GENERATION}.task.*.{ref}"


def access_subject(tenant: str, ref: str) -> str:
    """Polls, disclosures and subscriptions of one task."""
    return f"trail.{GENERATION}.access.{tenant_token(tenant)}.{ref}"


def denied_subject(tenant: str) -> str:
    """Refused accesses, by the tenant they are shown to."""
    return f"trail.{GENERATION}.denied.{tenant_token(tenant)}"


def control_subject(tenant: str) -> str:
    """Events of the service as a whole."""
    return f"trail.{GENERATION}.control.{tenant_token(tenant)}"


def governance_subject(tenant: str) -> str:
    """Policies and revocations: read whole by every process at its start, so nothing else lives here."""
    return f"trail.{GENERATION}.governance.{tenant_token(tenant)}"


def key_subject(ref: str) -> str:
    """Where a task's wrapped key lives in the stream KEYS."""
    return f"keys.{GENERATION}.{ref}"


def work_subject(server: str, ref: str) -> str:
    """Where the work of a task that lost its worker waits in the stream WORK."""
    return f"work.{GENERATION}.{tenant_token(server)}.{ref}"


def kind_of(subject: str) -> str:
    """`task`, `access`, `denied`, `control` or `governance`; empty for a subject that is none of ours."""
    parts = subject.split(".")
    return parts[2] if len(parts) >= 4 and parts[0] == "trail" and parts[2] in _KINDS else ""  # noqa: PLR2004
