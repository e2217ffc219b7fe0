"""A real token issuer on the loopback interface: ES256 keys, a JWKS, introspection, metadata, and tokens on demand.

Guarantees: it answers HTTP as issuers do (RFC 7517, RFC 7662, RFC 8414), from a thread of its own; keys can be rotated,
tokens revoked, its answers counted and replaced; nothing of it is left when the `with` block ends. There is no token
endpoint: `issue` and `issue_opaque` are methods. Needs joserfc.

    with LocalIssuer() as issuer:
        token = issuer.issue("ana", "cli", "tasks", aud="http://127.0.0.1:8000/mcp")
        opaque = issuer.issue_opaque("ana", "cli", "tasks", aud="http://127.0.0.1:8000/mcp")
        issuer.revoke(opaque)
"""

import base64
import hmac
import json
import secrets
import threading
import time
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote_plus

from joserfc import jwt
from joserfc.jwk import ECKey

METADATA_PATH = "/.well-known/oauth-authorization-server"
JWKS_PATH = "/jwks.json"
INTROSPECTION_PATH = "/introspect"
_FORM_MAX_BYTES = 64 * 1024


class LocalIssuer:
    """An issuer. `answers` maps a path to what it serves (status, body); `fetches` counts requests by path.

    `client_id` and `client_secret` are those of the one client that may introspect.
    """

    _server: ThreadingHTTPServer
    _thread: threading.Thread

    def __init__(self) -> None:
        self.fetches: Counter[str] = Counter()
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.client_id = "tasktrail"
        self.client_secret = secrets.token_urlsafe(16)
        self._keys: list[ECKey] = []
        self._active: dict[str, dict[str, object]] = {}

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
    def introspection_url(self) -> str:
        """Where it says whether a token is active."""
        return self.url + INTROSPECTION_PATH

    def secret_file(self, folder: Path) -> Path:
        """A file in `folder` that holds the client's secret and that only its owner can read."""
        path = folder / f"introspection-{self._server.server_port}.secret"
        path.touch(mode=0o600)
        path.write_text(self.client_secret + "\n", encoding="utf-8")
        return path

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
            "introspection_endpoint": self.introspection_url,
            "response_types_supported": [],
            "grant_types_supported": [],
        }

    def issue(self, sub: str, client_id: str, scope: str = "", ttl_s: float = 300, **claims: object) -> str:
        """An access token (RFC 9068) for `sub` through `client_id`; other claims, `aud` among them, as given.

        A claim given as None is left out, whichever it is.
        """
        header = {"alg": "ES256", "typ": "at+jwt", "kid": self.key.kid}
        return jwt.encode(header, self._claims(sub, client_id, scope, ttl_s, claims), self.key)

    def issue_opaque(self, sub: str, client_id: str, scope: str = "", ttl_s: float = 300, **claims: object) -> str:
        """An access token that says nothing by itself; introspection answers what `issue` would write into one."""
        token = secrets.token_urlsafe(32)
        self._active[token] = self._claims(sub, client_id, scope, ttl_s, {"token_type": "Bearer", **claims})
        return token

    def revoke(self, token: str) -> None:
        """An opaque token is inactive from now on (RFC 7009)."""
        self._active.pop(token, None)

    def _claims(self, sub: str, client_id: str, scope: str, ttl_s: float, more: dict[str, object]) -> dict[str, object]:
        now = int(time.time())
        said: dict[str, object] = {
            "iss": self.url,
            "sub": sub,
            "client_id": client_id,
            "scope": scope,
            "iat": now,
            "exp": now + ttl_s,
            "jti": secrets.token_hex(16),
            **more,
        }
        return {name: value for name, value in said.items() if value is not None}

    def introspected(self, authorization: str, form: bytes) -> tuple[int, bytes]:
        """The answer to an introspection request (RFC 7662 section 2)."""
        known = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret)}".encode()
        if not hmac.compare_digest(authorization.encode(), b"Basic " + base64.b64encode(known)):
            return HTTPStatus.UNAUTHORIZED, _json({"error": "invalid_client"})
        token = parse_qs(form.decode("ascii", "replace")).get("token", [""])[0]
        claims = self._active.get(token)
        return HTTPStatus.OK, _json({"active": False} if claims is None else {"active": True, **claims})


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _answering(issuer: LocalIssuer) -> type[BaseHTTPRequestHandler]:
    class Answering(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            issuer.fetches[self.path] += 1
            self._answer(*issuer.answers.get(self.path, (HTTPStatus.NOT_FOUND, b"{}")))

        def do_POST(self) -> None:
            issuer.fetches[self.path] += 1
            said = self.headers.get("Content-Length", "")
            form = self.rfile.read(min(int(said), _FORM_MAX_BYTES)) if said.isdigit() else b""
            if self.path == INTROSPECTION_PATH and self.path not in issuer.answers:
                self._answer(*issuer.introspected(self.headers.get("Authorization", ""), form))
            else:
                self._answer(*issuer.answers.get(self.path, (HTTPStatus.NOT_FOUND, b"{}")))

        def _answer(self, status: int, body: bytes) -> None:
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
