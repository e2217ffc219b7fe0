"""Who may connect to the embedded broker, and what each may do.

Guarantees: `tasktrail` may do everything, `adapter` only send commands and hear signals, `reader` only read the trail
and the current states; an MCP server that is named has a login of its own, and no other login speaks in its name; the
passwords are made once, kept in one file of mode 0600, and shown nowhere.

    logins = open_logins(store_dir / "credentials.json", servers=["reports"])
    nats.connect(**logins.servers["reports"].connect_options(url))
"""

import json
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec

from tasktrail.events.subjects import tenant_token
from tasktrail.services.durable import replace
from tasktrail.services.messages import COMMANDS, SIGNALS


class UnusableLogins(Exception):
    """The file of passwords cannot be used; the message says what to do."""


class ConnectOptions(TypedDict):
    """Keyword arguments for `nats.connect`."""

    servers: list[str]
    user: str
    password: str
    inbox_prefix: str


@dataclass(frozen=True, slots=True)
class Login:
    """One of the broker's users. Its replies arrive under `<inbox_prefix>.>`."""

    user: str
    password: str = field(repr=False)
    inbox_prefix: str

    def connect_options(self, url: str) -> ConnectOptions:
        """Return the keyword arguments for `nats.connect` that log this user in at `url`."""
        return ConnectOptions(servers=[url], user=self.user, password=self.password, inbox_prefix=self.inbox_prefix)


class Logins(NamedTuple):
    """Every user of the broker; those of MCP servers by the server's name."""

    service: Login
    adapter: Login
    reader: Login
    servers: Mapping[str, Login]


_FIRST = ("tasktrail", "adapter")
_USERS = (*_FIRST, "reader")
_READS = tuple(
    f"{asked}.{stream}{rest}"
    for stream in ("TRAIL", "KV_CURRENT")
    for asked, rest in (("STREAM.INFO", ""), ("CONSUMER.CREATE", ".>"), ("CONSUMER.MSG.NEXT", ".>"))
)
"""What reading a stream by a consumer of one's own takes."""


def users(logins: Logins) -> list[dict[str, Any]]:
    """The users as nats-server's configuration names them."""
    login, adapter, reader, servers = logins
    named = [tenant_token(name) for name in servers]
    return [
        {"user": login.user, "password": login.password},
        {
            "user": adapter.user,
            "password": adapter.password,
            "permissions": {
                "publish": {"allow": [f"{COMMANDS}.>"], "deny": [f"{COMMANDS}.{one}.>" for one in named]},
                "subscribe": {
                    "allow": [f"{adapter.inbox_prefix}.>", f"{SIGNALS}.>"],
                    "deny": [f"{SIGNALS}.{one}.>" for one in named],
                },
            },
        },
        *(_of_server(name, server) for name, server in servers.items()),
        {
            "user": reader.user,
            "password": reader.password,
            "permissions": {
                "publish": {"allow": [f"$JS.API.{one}" for one in _READS]},
                "subscribe": {"allow": [f"{reader.inbox_prefix}.>"]},
            },
        },
    ]


def _of_server(name: str, login: Login) -> dict[str, Any]:
    """An MCP server's own user: its commands, its signals, its inbox."""
    token = tenant_token(name)
    return {
        "user": login.user,
        "password": login.password,
        "permissions": {
            "publish": {"allow": [f"{COMMANDS}.{token}.*"]},
            "subscribe": {"allow": [f"{login.inbox_prefix}.>", f"{SIGNALS}.{token}.*"]},
        },
    }


def open_logins(path: Path, servers: Iterable[str] = ()) -> Logins:
    """Return everybody's login, with the passwords of `path`, made at the first start; a new user's at the next.

    `servers` are the MCP servers that have one of their own. A server that is not among them any more cannot connect;
    its password waits for it to come back.

    Raises:
        UnusableLogins: others may have read them, or the file is damaged.
    """
    own = {f"server-{tenant_token(name)}": name for name in servers}
    wanted = (*_USERS, *own)
    advice = f"Delete {path}: new passwords are made at the next start, and adapters need the new one."
    try:
        passwords = _passwords(path, advice)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        msg = f"{path.name} is damaged. {advice}"
        raise UnusableLogins(msg) from error
    made = {user: secrets.token_urlsafe(32) for user in wanted if user not in passwords}
    passwords |= made
    if made:
        replace(path, json.dumps(passwords).encode())
    service, adapter, reader, *others = (Login(user, passwords[user], f"_INBOX_{user}") for user in wanted)
    return Logins(service, adapter, reader, {own[login.user]: login for login in others})


def _passwords(path: Path, advice: str) -> dict[str, str]:
    """Those that were made already."""
    if not path.exists():
        return {}
    if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        msg = f"other users may have read the broker's passwords, {path.name} has mode {mode:04o}. {advice}"
        raise UnusableLogins(msg)
    found = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    if not found.keys() >= set(_FIRST):
        msg = f"{path.name} is damaged. {advice}"
        raise UnusableLogins(msg)
    return found
