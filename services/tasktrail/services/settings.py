"""Every setting of the service: its environment variable, unit, range and default, in one place.

Guarantees: the command line wins over the environment, that over the configuration file, that over the default; a value
that cannot be is refused at start with a message that names its file and line, or its variable, and the remedy; no
setting is read anywhere else. `docs/configuration.md` is checked against `DESCRIBED` and the tables by a test.

    settings = load(os.environ, config=Path("tasktrail.toml"), port=8420)
    effective(os.environ).origin["port"]  # default, tasktrail.toml:3, environment, or command line
"""

import difflib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.events.subjects import DEFAULT_TENANT
from tasktrail.services.configuration import (
    ApiKey,
    Issuer,
    Limits,
    McpServer,
    Operator,
    Privacy,
    Responders,
    Retention,
    Tlog,
    Tool,
)
from tasktrail.services.configuration_checks import Tables, problems
from tasktrail.services.configuration_file import (
    LISTS,
    SERVICE,
    TABLES,
    ConfigurationFile,
    Problem,
    read,
    shown,
)
from tasktrail.services.configuration_wording import complaint

ENV_PREFIX = "TASKTRAIL_"
CONFIG = "TASKTRAIL_CONFIG"
"""Names the configuration file where the command line does not."""

_OTHERS = {CONFIG, "TASKTRAIL_CASE", "TASKTRAIL_CONNECT"}
"""Variables that are no settings: which file to read, and what adapters read."""

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
    worker_lease_ms: Annotated[int, msgspec.Meta(ge=1_000, le=10 * MINUTE_MS)] = 30_000
    reruns_max: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3
    fold_ms: Annotated[int, msgspec.Meta(ge=10, le=1_000)] = 500
    payload_max_bytes: Annotated[int, msgspec.Meta(ge=1 * KIB, le=16 * MIB)] = 16 * MIB
    inline_max_bytes: Annotated[int, msgspec.Meta(ge=0, le=256 * KIB)] = 32 * KIB
    answer_within_ms: Annotated[int, msgspec.Meta(ge=100, le=10_000)] = 1_500
    resolve_for_ms: Annotated[int, msgspec.Meta(ge=1_000, le=60_000)] = 10_000
    tasks_cached: Annotated[int, msgspec.Meta(ge=16, le=1_000_000)] = 4_096
    issuers: tuple[Issuer, ...] = ()
    servers: tuple[McpServer, ...] = ()
    tools: tuple[Tool, ...] = ()
    api_keys: tuple[ApiKey, ...] = ()
    operators: tuple[Operator, ...] = ()
    retention: Retention = Retention()
    limits: Limits = Limits()
    privacy: Privacy = Privacy()
    tlog: Tlog = Tlog()
    responders: Responders = Responders()

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
    "nats_credentials": "file with the nkey seed or the `.creds` by which the external servers know the service",
    "nats_server": "your own nats-server binary for the embedded broker",
    "replicas": "copies of each stream that `tasktrail init` asks an external cluster for",
    "tenants": "tenant of issuers without a table of their own, as JSON: {issuer: tenant}; then others are refused",
    "default_tenant": "tenant of callers when no issuer's is known, and of anonymous callers",
    "anonymous": "whether callers of MCP servers without authentication may hold tasks",
    "ttl_default_ms": "a task's time to live when its tool asks for none",
    "ttl_max_ms": "the longest time to live granted, whatever is asked for",
    "poll_interval_ms": "the polling interval suggested to clients",
    "cancel_grace_ms": "how long running work may take to confirm a cancellation before the task ends without it",
    "worker_lease_ms": "how long a process that runs tasks may be silent before it counts as lost",
    "reruns_max": "how often the work of a task is started again after its worker was lost, where its tool allows it",
    "fold_ms": "how long repeated polls and denials are folded before they are written",
    "payload_max_bytes": "the largest payload (arguments, answer, result) taken",
    "inline_max_bytes": "sealed payloads up to this size travel in the entry, larger ones in the object bucket",
    "answer_within_ms": "how long a caller waits at most for the trail before it is told so",
    "resolve_for_ms": "how long the Ledger goes on resolving a write the trail has not confirmed",
    "tasks_cached": "how many task states a process keeps",
    "issuers": "issuers whose tokens are accepted, a table each; file only",
    "servers": "what the word of each MCP server is worth, a table each; file only",
    "tools": "rules for the tasks of some tools, a table each; file only",
    "api_keys": "machines that call with a key of ours, a table each; file only",
    "operators": "people who answer incidents, a table each; file only",
    "retention": "how long a handle opens a task that has ended, and how long its payloads are kept; file only",
    "limits": "what one principal and one tenant may have at once or in a minute; file only",
    "privacy": "whose subjects and addresses are recorded as pseudonyms; file only",
    "responders": "what one statement of responders' own SQL may take; file only",
    "tlog": "how often checkpoints are signed, and who else keeps or cosigns them; file only",
}
"""What each setting is for. The environment variable of a flat one is its upper-case name behind `TASKTRAIL_`."""

DEFAULT, ENVIRONMENT, COMMAND_LINE = "default", "environment", "command line"
"""Where a value comes from, when not from the file."""

_KINDS: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Settings)}
FLAT: tuple[str, ...] = tuple(name for name in _KINDS if name not in {*LISTS, *TABLES})
"""Settings of one value each: those of the file's table `[service]`, and of the environment."""


class Effective(msgspec.Struct, frozen=True, kw_only=True):
    """What holds, the file it was read from, if any, and where the value of each setting comes from.

    `origin` is by setting, and within a table by its path (`issuers[0].url`, `limits.polls_early`): `default`,
    `environment`, `command line`, or file and line.
    """

    settings: Settings
    file: Path | None
    origin: dict[str, str]


def load(environ: Mapping[str, str], config: Path | None = None, **given: object) -> Settings:
    """Settings from the file `config` (else the one TASKTRAIL_CONFIG names, else none), the environment, and `given`.

    `given` is what the command line gave; None is not given.

    Raises:
        InvalidRequest: a value is not of its setting's type or range, contradicts another, or names a file that cannot
            be used; the message says where it stands and what to do.
    """
    return effective(environ, config, **given).settings


def effective(environ: Mapping[str, str], config: Path | None = None, **given: object) -> Effective:
    """The same, with where each value comes from. Raises what `load` raises."""
    _refuse_unknown(environ)
    path = config or (Path(environ[CONFIG]) if environ.get(CONFIG) else None)
    file = _read(path) if path else None
    if file:
        _refuse(file.problems, file, {})
    said = {name: environ[ENV_PREFIX + name.upper()] for name in FLAT if ENV_PREFIX + name.upper() in environ}
    typed = {name: value for name, value in given.items() if value is not None}
    values: dict[str, Any] = dict(file.values) if file else {}
    values |= {name: _value(name, _from_text(name, text)) for name, text in said.items()}
    values |= {name: _value(name, value) for name, value in typed.items()}
    settings = Settings(**values)
    outer = dict.fromkeys(said, ENVIRONMENT) | dict.fromkeys(typed, COMMAND_LINE)
    _refuse(_problems(settings, file), file, outer)
    settings = msgspec.structs.replace(settings, data=settings.data.expanduser().absolute())
    return Effective(settings=settings, file=path, origin=_origins(settings, file, outer))


def check(config: Path) -> list[str]:
    """All problems of a configuration file, each with its line and remedy; the environment does not count.

    Raises:
        InvalidRequest: the file cannot be read, or is not TOML.
    """
    file = _read(config)
    found = list(file.problems)
    if not found:
        found = _problems(Settings(**file.values), file)
    return [file.told(problem) for problem in found]


def _read(path: Path) -> ConfigurationFile:
    return read(path, {name: _KINDS[name] for name in FLAT})


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = {ENV_PREFIX + name.upper() for name in FLAT} | _OTHERS
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable in known:
            continue
        if (name := variable.removeprefix(ENV_PREFIX).lower()) in _KINDS:
            message = f"{variable}: {name} can be set in the configuration file only; name one in {CONFIG}"
            raise InvalidRequest(message)
        near = difflib.get_close_matches(variable, known, n=1)
        message = f"{variable} is no setting" + (f"; did you mean {near[0]}?" if near else "")
        raise InvalidRequest(message)


def _refuse(found: list[Problem], file: ConfigurationFile | None, outer: Mapping[str, str]) -> None:
    """Raise the first problem; say how to see the others."""
    if not found:
        return
    first = found[0]
    root = first.path if first.path[0] == SERVICE else first.path[:1]
    if file and shown(root) not in outer and (file.gives(root) or file.gives((*root, 0))):
        message = file.told(first)
        if len(found) > 1:
            message += f" (and {len(found) - 1} more; see them with: tasktrail config check {file.path})"
    else:
        message = f"{shown(first.path)}: {first.text}"
    raise InvalidRequest(message)


def _problems(settings: Settings, file: ConfigurationFile | None) -> list[Problem]:
    tables = Tables(**{name: getattr(settings, name) for name in Tables.__struct_fields__})
    return [*_times(settings, file), *problems(tables), *_secret_files(settings)]


def _times(settings: Settings, file: ConfigurationFile | None) -> list[Problem]:
    default, most = settings.ttl_default_ms, settings.ttl_max_ms
    if default <= most:
        return []
    both: list[tuple[str, str]] = [(SERVICE, "ttl_default_ms"), (SERVICE, "ttl_max_ms")]
    written = [path for path in both if file and file.gives(path)]
    text = f"ttl_default_ms ({default}) exceeds ttl_max_ms ({most}); lower the one or raise the other"
    return [Problem((written or both)[0], text)]


def _secret_files(settings: Settings) -> list[Problem]:
    """What is wrong with the files that hold secrets; their content is not read."""
    found: list[Problem] = []
    for index, issuer in enumerate(settings.issuers):
        if issuer.introspection_secret_file and (why := _exposed(Path(issuer.introspection_secret_file))):
            found.append(Problem(("issuers", index, "introspection_secret_file"), why))
    return found


def _exposed(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"{path}: {error.strerror}; write the secret into this file, mode 0600"
    if not stat.S_ISREG(mode) or not os.access(path, os.R_OK):
        return f"{path} is no file we can read; give one of the user who runs the service"
    if stat.S_IMODE(mode) & 0o077:
        return f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}"
    return ""


def _origins(settings: Settings, file: ConfigurationFile | None, outer: Mapping[str, str]) -> dict[str, str]:
    """Where each value comes from, by its path as shown."""

    def origin(path: tuple[str | int, ...]) -> str:
        return file.place(path) if file and file.gives(path) else DEFAULT

    found = {name: outer.get(name) or origin((SERVICE, name)) for name in FLAT}
    for name in (*LISTS, *TABLES):
        table = getattr(settings, name)
        whole = outer.get(name)
        rows = [((name,), table)] if name in TABLES else [((name, index), row) for index, row in enumerate(table)]
        if not rows:
            found[name] = whole or origin((name,))
        for at, row in rows:
            found |= {shown((*at, field)): whole or origin((*at, field)) for field in row.__struct_fields__}
    return found


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


def _value(name: str, value: object) -> object:
    """One value of the environment or the command line, where a number may be text."""

    def path(kind: type, said: object) -> object:
        if kind is Path:
            return Path(str(said))
        message = f"{kind} is not a setting's type"
        raise TypeError(message)

    if name not in _KINDS:
        message = f"{name} is no setting"
        raise InvalidRequest(message)
    try:
        return msgspec.convert(value, _KINDS[name], strict=False, dec_hook=path)
    except msgspec.ValidationError as error:
        message = f"{name} ({ENV_PREFIX}{name.upper()}): {complaint(name, value, str(error))}"
        raise InvalidRequest(message) from None
