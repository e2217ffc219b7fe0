"""A real token issuer on the loopback interface: ES256 keys, a JWKS, RFC 8414 metadata, and tokens on demand.

Guarantees: it answers HTTP as issuers do, from a thread of its own; keys can be rotated, its answers counted and
replaced; nothing of it is left when the `with` block ends. There is no token endpoint: `issue` is a method. Needs
joserfc.

    with LocalIssuer() as issuer:
        token = issuer.issue("ana", "cli", "tasks", aud="http://127.0.0.1:8000/mcp")
"""

import json
import secrets
import threading
import time
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from joserfc import jwt
from joserfc.jwk import ECKey

METADATA_PATH = "/.well-known/oauth-authorization-server"
JWKS_PATH = "/jwks.json"


class LocalIssuer:
    """An issuer. `answers` maps a path to what it serves (status, body); `fetches` counts requests by path."""

    _server: ThreadingHTTPServer
    _thread: threading.Thread

    def __init__(self) -> None:
        self.fetches: Counter[str] = Counter()
        self.answers: dict[str, tuple[int, bytes]] = {}
        self._keys: list[ECKey] = []

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _answering(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.rotate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The issuer identifier: the `iss` of its tokens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def jwks_url(self) -> str:
        """Where its keys are."""
        return self.url + JWKS_PATH

    @property
    def key(self) -> ECKey:
        """The key it signs with now."""
        return self._keys[-1]

    def rotate(self, *, keep: int = 1) -> ECKey:
        """Sign with a new key from now on; `keep` of the older ones stay in the JWKS."""
        key = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256", "kid": secrets.token_hex(8)})
        self._keys = [*(self._keys[-keep:] if keep else []), key]
        self.answers[JWKS_PATH] = (HTTPStatus.OK, _json({"keys": [one.as_dict(private=False) for one in self._keys]}))
        self.answers[METADATA_PATH] = (HTTPStatus.OK, _json(self._metadata()))
        return key

    def _metadata(self) -> dict[str, object]:
        return {
            "issuer": self.url,
            "jwks_uri": self.jwks_url,
            "response_types_supported": [],
            "grant_types_supported": [],
        }

    def issue(self, sub: str, client_id: str, scope: str = "", ttl_s: float = 300, **claims: object) -> str:
        """An access token (RFC 9068) for `sub` through `client_id`; other claims, `aud` among them, as given.

        A claim given as None is left out, whichever it is.
        """
        now = int(time.time())
        said: dict[str, object] = {
            "iss": self.url,
            "sub": sub,
            "client_id": client_id,
            "scope": scope,
            "iat": now,
            "exp": now + ttl_s,
            "jti": secrets.token_hex(16),
            **claims,
        }
        header = {"alg": "ES256", "typ": "at+jwt", "kid": self.key.kid}
        return jwt.encode(header, {name: value for name, value in said.items() if value is not None}, self.key)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _answering(issuer: LocalIssuer) -> type[BaseHTTPRequestHandler]:
    class Answering(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            issuer.fetches[self.path] += 1
            status, body = issuer.answers.get(self.path, (HTTPStatus.NOT_FOUND, b"{}"))
            self.send_response(status)
            if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
                self.send_header("Location", body.decode())
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
            """Requests are counted, not printed."""

    return Answering
