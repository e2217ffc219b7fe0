"""Hostile HTTP: each request gets a documented refusal or a closed connection, and the service goes on.

Issue "main job": hostile input at every edge. The refusals are problem+json (RFC 9457, problems.py), but of what is no
HTTP/1.1 (RFC 9112) at all.
"""

import json
import socket
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasktrail.services.http.server import HEADER_BYTES_MAX
from tasktrail.services.responder import read_token
from tasktrail.testing.service import UpProcess

from .bodies import MARK, NOT_JSON, ODD_TEXTS

pytestmark = pytest.mark.requirement("O1")

WITHIN_S = 10.0
_RESPONSE_BYTES_MAX = 4 * 1024 * 1024
CALM = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
]


class Peer:
    """Sends bytes to the responders' surface and reads what comes back."""

    def __init__(self, up: UpProcess) -> None:
        url = json.loads((up.data / "service.json").read_text())["url"]
        self.address = urlsplit(url)
        self.token = read_token(up.data)

    def send(self, sent: bytes, *, ending: bool) -> bytes:
        """All that is answered until the connection is closed; empty: closed without a word.

        `ending`: say that nothing more comes, for what would otherwise be waited for.
        """
        host, port = self.address.hostname or "", self.address.port or 0
        heard = b""
        with socket.create_connection((host, port), timeout=WITHIN_S) as peer:
            try:
                peer.sendall(sent)
                if ending:
                    peer.shutdown(socket.SHUT_WR)
                while len(heard) < _RESPONSE_BYTES_MAX and (more := peer.recv(65_536)):
                    heard += more
            except (ConnectionResetError, BrokenPipeError):
                pass
        return heard

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        token: bool = True,
        also: Mapping[str, str] | None = None,
        **more: str,
    ) -> tuple[int, bytes]:
        """Status and body of one well-formed request."""
        headers = {"Host": self.address.netloc, "Connection": "close", "Content-Length": str(len(body))}
        headers |= {"Authorization": f"Bearer {self.token}"} if token else {}
        headers |= {name.replace("_", "-"): value for name, value in {**more, **(also or {})}.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        heard = self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body, ending=False)
        assert heard, "the connection was closed without a word"
        head, _, content = heard.partition(b"\r\n\r\n")
        return int(head.split()[1]), content


@pytest.fixture
def peer(up: UpProcess) -> Peer:
    return Peer(up)


def refused(status: int, content: bytes) -> str:
    """The reason of a refusal as problem+json says it."""
    problem = msgspec.json.decode(content, type=dict[str, object])
    assert {"type", "title", "status", "detail", "reason", "retriable", "written"} == set(problem), problem
    assert problem["status"] == status
    assert len(str(problem["detail"])) <= 2_000
    return str(problem["reason"])


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_a_body_that_is_no_json_object_of_ours_is_refused(peer: Peer, body: bytes) -> None:
    """RFC 8259 within RFC 7493; 64 KiB at most."""
    status, content = peer.request("POST", "/api/v1/timeline", body, Content_Type="application/json")
    expected = (413, "too_large") if len(body) > 64 * 1024 else (400, "invalid_request")
    assert (status, refused(status, content)) == expected


STRANGE_QUESTIONS: dict[str, object] = {
    "no member": {},
    "an unknown member": {"task": "x", MARK: 1},
    "another type": {"task": 1},
    "null": {"task": None},
    "an array": {"task": ["x"]},
    "nothing": {"task": ""},
    "too long a text": {"task": "a" * 257},
    "a NUL": {"task": "a\0"},
    "an integer of 2^53": {"task": 2**53},
}


@pytest.mark.parametrize("question", STRANGE_QUESTIONS.values(), ids=STRANGE_QUESTIONS.keys())
def test_a_question_that_is_not_as_documented_is_refused(peer: Peer, question: object) -> None:
    """The OpenAPI document: `task`, a text of 1 to 256 characters, and nothing else."""
    body = json.dumps(question).encode()
    status, content = peer.request("POST", "/api/v1/timeline", body, Content_Type="application/json")
    assert (status, refused(status, content)) == (400, "invalid_request")


@pytest.mark.parametrize("odd", [text for text in ODD_TEXTS if text and "\0" not in text and len(text) <= 256])
def test_a_task_of_any_text_is_one_that_is_not_there(peer: Peer, odd: str) -> None:
    """A question may name what is no task: 404, whatever is in it."""
    body = json.dumps({"task": odd}).encode()
    status, content = peer.request("POST", "/api/v1/timeline", body, Content_Type="application/json")
    assert (status, refused(status, content)) == (404, "no_such_task")


@pytest.mark.parametrize(
    "declared", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "*", "\xff"]
)
def test_a_body_that_is_not_declared_as_json_is_not_read(peer: Peer, declared: str) -> None:
    """RFC 9110, section 15.5.16."""
    status, content = peer.request("POST", "/api/v1/timeline", b'{"task": "x"}', Content_Type=declared)
    assert (status, refused(status, content)) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "query",
    [
        "status=nothing",
        "status=",
        "live=perhaps",
        "limit=0",
        "limit=1001",
        "limit=-1",
        f"limit={2**63}",
        f"limit={'9' * 5_000}",
        f"before={2**53}",
        "before=-1",
        f"tenant={'t' * 2_049}",
        "tenant=a&tenant=b",
        "unknown=1",
        f"{MARK}=1",
        "%ff=1",
        "a[b]=1",
    ],
)
def test_a_parameter_that_is_not_as_documented_is_refused(peer: Peer, query: str) -> None:
    """The OpenAPI document; a parameter that is not understood would answer another question."""
    status, content = peer.request("GET", f"/api/v1/tasks?{query}")
    assert (status, refused(status, content)) == (400, "invalid_request")


@pytest.mark.parametrize("odd", ["%00", "%ff%fe", "%0d%0aX:%201", "*", "'%20OR%201=1--", "%F0%9F%92%A9", "%", "%zz"])
def test_a_filter_of_any_text_finds_nothing_else(peer: Peer, odd: str) -> None:
    """Filters are parameters of prepared statements."""
    for name in ("tenant", "server", "tool", "iss", "sub", "client_id"):
        status, content = peer.request("GET", f"/api/v1/tasks?{name}={odd}")
        assert (status, content) == (200, b"[]"), (name, status, content)


@pytest.mark.parametrize(
    "path",
    [
        "/..",
        "//",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/api/v1/timeline/x",
        f"/{'a' * 8_000}",
        "/%00",
        "/\xff",
        "*",
    ],
)
def test_a_path_of_any_text_is_one_that_is_not_there(peer: Peer, path: str) -> None:
    """404 with the token; without it nobody learns even that. What is no path at all the server itself refuses."""
    status, content = peer.request("GET", path)
    if status != 400:
        assert (status, refused(status, content)) == (404, "not_found")
        status, content = peer.request("GET", path, token=False)
        assert (status, refused(status, content)) == (401, "unauthorised")


@pytest.mark.parametrize(
    "method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get", "A" * 300]
)
def test_other_methods_are_refused(peer: Peer, method: str) -> None:
    """405, or 4xx of the server for what is no method; OPTIONS is answered with those there are (RFC 9110)."""
    status, _ = peer.request(method, "/api/v1/tasks")
    assert status == 204 if method == "OPTIONS" else 400 <= status < 500


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": ""},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1@evil.example"},
        {"Host": "127.0.0.1, evil.example"},
        {"Host": "[::1"},
        {"Host": "\xff"},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": f"http://127.0.0.1.{MARK}.example"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic eDp5"},
        {"Authorization": f"Bearer {MARK}"},
        {"Authorization": "Bearer \xff\xfe"},
        {"Authorization": "\t"},
    ],
    ids=repr,
)
def test_headers_of_strangers_are_refused(peer: Peer, headers: dict[str, str]) -> None:
    """Issue "main job": the surface needs a responder token, and checks Host and Origin."""
    status, content = peer.request("GET", "/api/v1/tasks", also=headers)
    assert (status, refused(status, content)) in {(421, "wrong_host"), (403, "foreign_origin"), (401, "unauthorised")}


def well(peer: Peer, more: bytes = b"", body: bytes = b"", *, line: bytes = b"POST /api/v1/timeline HTTP/1.1") -> bytes:
    """A request as bytes, whose framing the caller spoils."""
    head = b"%s\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
    return head % (line, peer.address.netloc.encode(), peer.token.encode()) + more + b"\r\n" + body


SPOILED: dict[str, Callable[[Peer], bytes]] = {
    "nothing": lambda _: b"",
    "line ends": lambda _: b"\r\n" * 1_000,
    "zeros": lambda _: b"\0" * 100_000,
    "TLS": lambda _: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x11" * 508,
    "HTTP/2": lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100,
    "NATS": lambda _: b"CONNECT {}\r\nPING\r\n",
    "no version": lambda peer: well(peer, line=b"GET /"),
    "HTTP/9": lambda peer: well(peer, line=b"GET / HTTP/9.9"),
    "a NUL in the line": lambda peer: well(peer, line=b"GET /\0 HTTP/1.1"),
    "a long line": lambda peer: well(peer, line=b"GET /" + b"a" * 100_000 + b" HTTP/1.1"),
    "a long header": lambda peer: well(peer, b"X: " + b"a" * 4 * HEADER_BYTES_MAX + b"\r\n"),
    "many headers": lambda peer: well(peer, b"X: 1\r\n" * 20_000),
    "a header without a name": lambda peer: well(peer, b": 1\r\n"),
    "a folded header": lambda peer: well(peer, b"X: 1\r\n 2\r\n"),
    "a NUL in a header": lambda peer: well(peer, b"X: \0\r\n"),
    "two hosts": lambda peer: well(peer, b"Host: evil.example\r\n"),
    "two tokens": lambda peer: well(peer, b"Authorization: Bearer x\r\n"),
    "a length that is no number": lambda peer: well(peer, b"Content-Length: x\r\n"),
    "a negative length": lambda peer: well(peer, b"Content-Length: -1\r\n"),
    "two lengths": lambda peer: well(peer, b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{}"),
    "a length and chunks": lambda peer: well(
        peer, b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n"
    ),
    "an unknown coding": lambda peer: well(peer, b"Transfer-Encoding: gzip\r\n", b"{}"),
    "a chunk of no size": lambda peer: well(peer, b"Transfer-Encoding: chunked\r\n", b"x\r\n"),
    "a chunk of 2^64 bytes": lambda peer: well(peer, b"Transfer-Encoding: chunked\r\n", b"FFFFFFFFFFFFFFFF\r\n{}"),
    "less than its length": lambda peer: well(peer, b"Content-Length: 1000\r\n", b'{"task": '),
    "ten gigabytes": lambda peer: well(peer, b"Content-Length: 10000000000\r\n", b"a" * 200_000),
    "chunks without end": lambda peer: (
        well(peer, b"Transfer-Encoding: chunked\r\n", b"1000\r\n" + b"a" * 4_096 + b"\r\n") * 1
    ),
    "many small chunks": lambda peer: well(peer, b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n" * 70_000),
    "an upgrade": lambda peer: well(
        peer, b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n"
    ),
    "an expectation": lambda peer: well(peer, b"Expect: 200-everything\r\nContent-Length: 2\r\n", b"{}"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_request_is_refused_or_the_connection_closed(peer: Peer, spoil: Callable[[Peer], bytes]) -> None:
    """RFC 9112, sections 2 to 7; never a 5xx, never a success, never a wait."""
    start = time.monotonic()
    heard = peer.send(spoil(peer), ending=True)
    assert time.monotonic() - start < WITHIN_S
    assert not heard or b"HTTP/1.1 4" in heard[:64], heard[:400]
    assert b"HTTP/1.1 2" not in heard
    assert b"HTTP/1.1 5" not in heard


def test_a_hundred_unfinished_requests_do_not_keep_others_waiting(peer: Peer) -> None:
    """What is never finished costs a connection and nothing else."""
    host, port = peer.address.hostname or "", peer.address.port or 0
    unfinished = [socket.create_connection((host, port), timeout=WITHIN_S) for _ in range(100)]
    try:
        for one in unfinished:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Unfinished: ")
        assert peer.request("GET", "/healthz", token=False)[0] == 200
    finally:
        for one in unfinished:
            one.close()


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(sent=st.binary(min_size=1, max_size=300))
def test_random_bytes_are_refused_or_the_connection_closed(peer: Peer, sent: bytes) -> None:
    """Bounded examples; the seed of a failure is printed by hypothesis."""
    heard = peer.send(sent + b"\r\n\r\n", ending=True)
    assert not heard or heard.startswith(b"HTTP/1.1 4"), heard[:400]


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(body=st.binary(max_size=300))
def test_random_bodies_are_refused(peer: Peer, body: bytes) -> None:
    """The same for a body behind the token."""
    status, content = peer.request("POST", "/api/v1/timeline", body, Content_Type="application/json")
    assert (status, refused(status, content)) == (400, "invalid_request")


def test_nothing_of_it_is_in_the_log(up: UpProcess) -> None:
    """Feature O4: logs without what strangers sent: neither paths nor headers nor bodies. Runs last."""
    said = up.output()
    assert MARK not in said
    assert "evil" not in said
