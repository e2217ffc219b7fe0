"""What an operator configures beyond single values: issuers, MCP servers, tools, keys, limits, retention, checkpoints.

Guarantees: the structures of the configuration file's tables, with unit, range and default of every field; what a field
alone cannot say (names given twice, addresses that would be asked in the clear, rules that contradict each other) is in
`configuration_checks.py`. Nothing here reads a file, the environment or the network: `settings.py` does. Durations are
milliseconds.

    Tool(server="reports", tool="generate", ttl_max_ms=3_600_000, binding=BindingMode.USER)
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import msgspec

from tasktrail.events.authority import BindingMode
from tasktrail.events.subjects import DEFAULT_TENANT

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
YEAR_MS = 366 * DAY_MS
ANY = "*"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Ms = Annotated[int, msgspec.Meta(ge=1, le=YEAR_MS)]
Kept = Annotated[int, msgspec.Meta(ge=0, le=YEAR_MS)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Sha256OrNone = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]

ALGORITHMS = ("ES256", "ES384", "ES512", "Ed25519", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
"""What an issuer may sign with unless it is configured narrower. Neither `none` nor HMAC can be configured."""

RIGHTS = ("read", "unseal", "revoke", "grant", "hold", "policy")
"""What an operator may be allowed: `read` the trail, `unseal` payloads, `revoke` and cancel, give a `grant`, place and
release a `hold`, activate a `policy`."""


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables of the configuration file."""


class Issuer(Table, frozen=True, kw_only=True):
    """`[[issuers]]`: an issuer whose tokens are accepted.

    `url` is its `iss`; `tenant` is whose its subjects are. JWT access tokens (RFC 9068) need `jwks_url`; opaque ones
    need `introspection_url` (RFC 7662), with the client's id and the file that holds its secret. `audience` is what a
    token must be for: the MCP server's own identifier, or several. Nothing but these addresses is ever contacted.
    """

    url: Name
    tenant: Name = DEFAULT_TENANT
    audience: tuple[Name, ...]
    jwks_url: str = ""
    algorithms: tuple[str, ...] = ()
    introspection_url: str = ""
    introspection_client_id: str = ""
    introspection_secret_file: str = ""
    skew_ms: Annotated[int, msgspec.Meta(ge=0, le=5 * MINUTE_MS)] = MINUTE_MS


class McpServer(Table, frozen=True, kw_only=True):
    """`[[servers]]`: what an MCP server's word is worth. `name` may hold `*`.

    `asserts`: its word on its callers is taken, and shown as asserted; without, it must forward their tokens.
    `tenant`: its callers' tenant where neither issuer nor key says one. `sha256`: hex digest of the token by which it
    feeds the service over HTTP; empty: it does not.
    """

    name: Name
    asserts: bool = False
    tenant: str = ""
    sha256: Sha256OrNone = ""

    @property
    def named(self) -> bool:
        """Whether it is one server, and not a pattern for several."""
        return ANY not in self.name


class ApiKey(Table, frozen=True, kw_only=True):
    """`[[api_keys]]`: a machine that calls with a key of ours. `sha256`: hex digest of the key, kept nowhere else."""

    name: Name
    sha256: Sha256
    tenant: Name = DEFAULT_TENANT
    client_id: str = ""


class Operator(Table, frozen=True, kw_only=True):
    """`[[operators]]`: a person who answers incidents. `sha256`: hex digest of the token; `rights`: see RIGHTS."""

    name: Name
    sha256: Sha256
    rights: tuple[str, ...] = ("read",)


class Retention(Table, frozen=True, kw_only=True):
    """`[retention]`: how long a handle opens a task that has ended, by status, and then its payloads are kept.

    A handle never opens longer than its time to live. `payloads_ms` counts from the handle's end: then the task's key
    is destroyed, unless a hold stops it. 0: at once.
    """

    completed_ms: Kept = HOUR_MS
    failed_ms: Kept = HOUR_MS
    cancelled_ms: Kept = 15 * MINUTE_MS
    payloads_ms: Kept = DAY_MS


class Tool(Table, frozen=True, kw_only=True):
    """`[[tools]]`: rules for the tasks of some tools. `server`, `tool` and `tenant` may hold `*`; the first that fits.

    A field that is left out is the service's own.
    """

    server: Name = ANY
    tool: Name = ANY
    tenant: Name = ANY
    binding: BindingMode = BindingMode.EXACT
    ttl_default_ms: Ms | None = None
    ttl_max_ms: Ms | None = None
    retention: Retention | None = None

    def fits(self, server: str, tool: str, tenant: str) -> bool:
        """Whether these rules are for this tool of this server, called in this tenant."""
        return fnmatchcase(server, self.server) and fnmatchcase(tool, self.tool) and self.tenant in {ANY, tenant}


class Limits(Table, frozen=True, kw_only=True):
    """`[limits]`: what one principal, and one tenant, may have at once or in a minute.

    A principal is the identity context a handle is bound to. `polls_early`: how many polls within `poll_interval_ms` of
    the last are answered before one is told to wait. `in_flight_per_principal`: requests being worked on; more wait
    their turn, so that one principal's flood delays itself alone.
    """

    live_tasks_per_principal: Count = 1_000
    live_tasks_per_tenant: Count = 100_000
    creations_per_minute_per_principal: Count = 600
    creations_per_minute_per_tenant: Count = 60_000
    polls_early: Count = 300
    failed_lookups_per_minute_per_principal: Count = 300
    failed_lookups_per_minute_per_tenant: Count = 30_000
    in_flight_per_principal: Count = 16


class Privacy(Table, frozen=True, kw_only=True):
    """`[privacy]`: what is recorded as a keyed pseudonym instead of itself, for the tenants that must.

    The pseudonym is the same for the same text within a tenant and different in another. `tenants` may be `["*"]`.
    """

    tenants: tuple[str, ...] = ()
    subjects: bool = True
    addresses: bool = True

    def covers(self, tenant: str) -> bool:
        """Whether this tenant's facts are pseudonymised."""
        return ANY in self.tenants or tenant in self.tenants


class Responders(Table, frozen=True, kw_only=True):
    """`[responders]`: what one statement of responders' own SQL may take.

    `sql_timeout_ms`: from its start to its end, and then it is killed. `sql_memory_mb` is what the database may hold
    of it (MiB). `sql_rows_max`: rows of an answer; what is beyond is cut off, and the answer says so.
    """

    sql_timeout_ms: Annotated[int, msgspec.Meta(ge=100, le=5 * MINUTE_MS)] = 10_000
    sql_memory_mb: Annotated[int, msgspec.Meta(ge=64, le=65_536)] = 256
    sql_rows_max: Count = 10_000


class Witness(Table, frozen=True, kw_only=True):
    """`[[tlog.witnesses]]`: who cosigns checkpoints (C2SP tlog-witness), at `url`, with the key `vkey`."""

    url: Name
    vkey: Name


class Tlog(Table, frozen=True, kw_only=True):
    """`[tlog]`: how often checkpoints are signed, and who else keeps or cosigns them.

    `copies` are directories (absolute paths) and `nats://host:4222/STREAM` addresses; `nats_credentials` is the file by
    which all of the latter know us.
    """

    interval_ms: Annotated[int, msgspec.Meta(ge=1_000, le=HOUR_MS)] = 1_000
    copies: tuple[Name, ...] = ()
    nats_credentials: Path | None = None
    witnesses: tuple[Witness, ...] = ()
