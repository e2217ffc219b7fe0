"""Keys of NATS as `nk` and `nsc` make them, and a nats-server that knows them.

user = Key(USER)
with server(tmp_path, {"authorization": {"users": [{"nkey": user.public}]}}) as url:
    seed = private(tmp_path / "user.nk", user.seed)
"""

import base64
import json
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import nkeys  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # it has no types

from tasktrail.services.broker import bundled_binary, end_child, start_child

WITHIN_S = 30.0
OPERATOR: int = nkeys.PREFIX_BYTE_OPERATOR
ACCOUNT: int = nkeys.PREFIX_BYTE_ACCOUNT
USER: int = nkeys.PREFIX_BYTE_USER


class Key:
    """A new key pair of an operator, an account or a user."""

    def __init__(self, prefix: int) -> None:
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
        self._pair: Any = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def jwt(self, about: "Key", kind: str, **facts: object) -> str:
        """What this key says about another."""
        nats = {"type": kind, "version": 2, **facts}
        claims = {"iss": self.public, "sub": about.public, "name": kind, "iat": int(time.time()), "nats": nats}
        signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(claims)}"
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


def _part(members: dict[str, Any]) -> str:
    return _base64(json.dumps(members).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def private(path: Path, content: bytes, mode: int = 0o600) -> Path:
    """A file of this mode."""
    path.touch(mode=0o600)
    path.write_bytes(content)
    path.chmod(mode)
    return path


@contextmanager
def server(folder: Path, config: str | Mapping[str, object]) -> Generator[str]:
    """A nats-server with this configuration, which says neither where it listens nor stores: its URL.

    What it says is in `folder / "out"`.
    """
    own = 'listen: "127.0.0.1:-1"\nports_file_dir: "."\n'
    members = (
        "\n".join(f"{name}: {json.dumps(value)}" for name, value in config.items())
        if isinstance(config, Mapping)
        else config
    )
    (folder / "nats.conf").write_text(own + members, encoding="utf-8")
    child = start_child([bundled_binary(), "-c", "nats.conf"], directory=folder, output=folder / "out")
    try:
        deadline, ports = time.monotonic() + WITHIN_S, list[Path]()
        while not ports or not ports[0].stat().st_size:
            assert child.poll() is None, (folder / "out").read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "no ports file"
            Event().wait(0.01)
            ports = list(folder.glob("*.ports"))
        url: str = json.loads(ports[0].read_text(encoding="utf-8"))["nats"][0]
        yield url
    finally:
        end_child(child, 5.0)
