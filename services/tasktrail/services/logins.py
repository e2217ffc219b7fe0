"""Who may connect to the embedded broker, and what each may do.

Guarantees: `tasktrail` may do everything, `adapter` only send commands and hear signals, `reader` only read the trail
and the current states; the passwords are made once, kept in one file of mode 0600, and shown nowhere.

    logins = open_logins(store_dir / "credentials.json")
    nats.connect(**logins.reader.connect_options(url))
"""

import json
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec

from tasktrail.services.durable import replace


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
    """One of the broker's three users. Its replies arrive under `<inbox_prefix>.>`."""

    user: str
    password: str = field(repr=False)
    inbox_prefix: str

    def connect_options(self, url: str) -> ConnectOptions:
        """Return the keyword arguments for `nats.connect` that log this user in at `url`."""
        return ConnectOptions(servers=[url], user=self.user, password=self.password, inbox_prefix=self.inbox_prefix)


class Logins(NamedTuple):
    """Every user of the broker."""

    service: Login
    adapter: Login
    reader: Login


_USERS = ("tasktrail", "adapter", "reader")
_READS = tuple(
    f"{asked}.{stream}{rest}"
    for stream in ("TRAIL", "KV_CURRENT")
    for asked, rest in (("STREAM.INFO", ""), ("CONSUMER.CREATE", ".>"), ("CONSUMER.MSG.NEXT", ".>"))
)
"""What reading a stream by a consumer of one's own takes."""


def users(logins: Logins) -> list[dict[str, Any]]:
    """The users as nats-server's configuration names them."""
    login, adapter, reader = logins
    return [
        {"user": login.user, "password": login.password},
        {
            "user": adapter.user,
            "password": adapter.password,
            "permissions": {
                "publish": {"allow": ["tasktrail.cmd.>"]},
                "subscribe": {"allow": [f"{adapter.inbox_prefix}.>", "tasktrail.signal.>"]},
            },
        },
        {
            "user": reader.user,
            "password": reader.password,
            "permissions": {
                "publish": {"allow": [f"$JS.API.{one}" for one in _READS]},
                "subscribe": {"allow": [f"{reader.inbox_prefix}.>"]},
            },
        },
    ]


def open_logins(path: Path) -> Logins:
    """Return everybody's login, with the passwords of `path`, made at the first start; a new user's at the next.

    Raises:
        UnusableLogins: others may have read them, or the file is damaged.
    """
    if not path.exists():
        replace(path, json.dumps({user: secrets.token_urlsafe(32) for user in _USERS}).encode())
    advice = f"Delete {path}: new passwords are made at the next start, and adapters need the new one."
    if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        msg = f"other users may have read the broker's passwords, {path.name} has mode {mode:04o}. {advice}"
        raise UnusableLogins(msg)
    try:
        passwords = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        if "reader" not in passwords:
            passwords["reader"] = secrets.token_urlsafe(32)
            replace(path, json.dumps(passwords).encode())
        return Logins(*(Login(user, passwords[user], f"_INBOX_{user}") for user in _USERS))
    except (msgspec.MsgspecError, KeyError) as error:
        msg = f"{path.name} is damaged. {advice}"
        raise UnusableLogins(msg) from error
