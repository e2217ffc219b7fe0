"""Every setting of the service: its environment variable, unit, range and default, in one place.

Guarantees: a value out of range is refused at start with a message that names the variable and the range; no setting
is read anywhere else. `docs/configuration.md` is checked against `DESCRIBED` by a test.

    settings = load(os.environ, data=Path(".tasktrail"), port=8420)
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.events.subjects import DEFAULT_TENANT

ENV_PREFIX = "TASKTRAIL_"
_OTHERS = {"TASKTRAIL_CONNECT"}
"""Variables that adapters read, not the service."""

MINUTE_MS = 60_000
DAY_MS = 86_400_000
KIB = 1024
MIB = 1024 * KIB

PositiveMs = Annotated[int, msgspec.Meta(ge=1)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a service is started with. Paths are absolute after `load`; durations are milliseconds, sizes bytes."""

    data: Path = Path(".tasktrail")
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8420
    hosts: tuple[str, ...] = ()
    nats_url: str = ""
    nats_credentials: Path | None = None
    nats_server: Path | None = None
    replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    tenants: dict[str, str] = {}
    default_tenant: str = DEFAULT_TENANT
    anonymous: bool = True
    ttl_default_ms: PositiveMs = 60 * MINUTE_MS
    ttl_max_ms: PositiveMs = DAY_MS
    poll_interval_ms: Annotated[int, msgspec.Meta(ge=50, le=10 * MINUTE_MS)] = 1_000
    cancel_grace_ms: Annotated[int, msgspec.Meta(ge=0, le=10 * MINUTE_MS)] = 5_000
    fold_ms: Annotated[int, msgspec.Meta(ge=10, le=1_000)] = 500
    payload_max_bytes: Annotated[int, msgspec.Meta(ge=1 * KIB, le=16 * MIB)] = 16 * MIB
    inline_max_bytes: Annotated[int, msgspec.Meta(ge=0, le=256 * KIB)] = 32 * KIB
    answer_within_ms: Annotated[int, msgspec.Meta(ge=100, le=10_000)] = 1_500
    resolve_for_ms: Annotated[int, msgspec.Meta(ge=1_000, le=60_000)] = 10_000
    tasks_cached: Annotated[int, msgspec.Meta(ge=16, le=1_000_000)] = 4_096

    @property
    def embedded(self) -> bool:
        """Whether the broker is our own child process."""
        return not self.nats_url


DESCRIBED: dict[str, str] = {
    "data": "directory of keys, audit store and (embedded) the broker's files",
    "host": "address the HTTP surface listens on",
    "port": "port of the HTTP surface; 0 takes a free one",
    "hosts": "further names the HTTP surface answers to, comma-separated: a reverse proxy's, say",
    "nats_url": "external NATS servers, comma-separated; empty starts an embedded one",
    "nats_credentials": "NATS credentials file for the external servers",
    "nats_server": "your own nats-server binary for the embedded broker",
    "replicas": "copies of each stream that `tasktrail init` asks an external cluster for",
    "tenants": "tenant of each token issuer, as JSON: {issuer: tenant}; when given, other issuers are refused",
    "default_tenant": "tenant of callers when `tenants` is empty, and of anonymous callers",
    "anonymous": "whether callers of MCP servers without authentication may hold tasks",
    "ttl_default_ms": "a task's time to live when its tool asks for none",
    "ttl_max_ms": "the longest time to live granted, whatever is asked for",
    "poll_interval_ms": "the polling interval suggested to clients",
    "cancel_grace_ms": "how long running work may take to confirm a cancellation before the task ends without it",
    "fold_ms": "how long repeated polls and denials are folded before they are written",
    "payload_max_bytes": "the largest payload (arguments, answer, result) taken",
    "inline_max_bytes": "sealed payloads up to this size travel in the entry, larger ones in the object bucket",
    "answer_within_ms": "how long a caller waits at most for the trail before it is told so",
    "resolve_for_ms": "how long the Ledger goes on resolving a write the trail has not confirmed",
    "tasks_cached": "how many task states a process keeps",
}
"""What each setting is for. Its environment variable is the upper-case name behind `TASKTRAIL_`."""


def load(environ: Mapping[str, str], **given: object) -> Settings:
    """Settings from the environment, overridden by what the command line gave (None: not given).

    Raises:
        InvalidRequest: a value is not of its setting's type or range; the message names the variable.
    """
    values: dict[str, Any] = {}
    known = {ENV_PREFIX + name.upper() for name in Settings.__struct_fields__} | _OTHERS
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1)
            message = f"{variable} is no setting" + (f"; did you mean {near[0]}?" if near else "")
            raise InvalidRequest(message)
    for name in Settings.__struct_fields__:
        text = environ.get(ENV_PREFIX + name.upper())
        if text is not None:
            values[name] = _from_text(name, text)
    values.update({name: value for name, value in given.items() if value is not None})
    settings = _convert(values)
    if settings.ttl_default_ms > settings.ttl_max_ms:
        message = f"ttl_default_ms ({settings.ttl_default_ms}) exceeds ttl_max_ms ({settings.ttl_max_ms}); lower one"
        raise InvalidRequest(message)
    return msgspec.structs.replace(settings, data=settings.data.expanduser().absolute())


def _from_text(name: str, text: str) -> object:
    if name == "hosts":
        return [part.strip() for part in text.split(",") if part.strip()]
    if name == "tenants":
        try:
            return msgspec.json.decode(text, type=dict[str, str])
        except msgspec.DecodeError as error:
            message = f'{ENV_PREFIX}TENANTS: {error}; give JSON such as {{"https://issuer.example": "acme"}}'
            raise InvalidRequest(message) from None
    return text


def _convert(values: dict[str, Any]) -> Settings:
    def path(kind: type, value: object) -> object:
        if kind is Path:
            return Path(str(value))
        message = f"{kind} is not a setting's type"
        raise TypeError(message)

    try:
        return msgspec.convert(values, Settings, strict=False, dec_hook=path)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].rstrip("`") or "a setting"
        message = f"{name} ({ENV_PREFIX}{name.upper()}): {error}"
        raise InvalidRequest(message) from None
