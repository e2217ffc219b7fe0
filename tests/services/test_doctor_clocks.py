"""What `tasktrail doctor` finds of clocks. Source: issue 3, "Configuration"; feature O6."""

import asyncio
import contextlib
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from tests.services.findings import NOT_CHECKED, NOTICE, UNSAFE, WELL, by_check

from tasktrail.services.configuration import Issuer
from tasktrail.services.doctor import clocks
from tasktrail.services.doctor.findings import Severity
from tasktrail.testing.issuer import LocalIssuer


@contextlib.contextmanager
def skewed(seconds: float) -> Generator[str]:
    """An issuer's key address whose clock is wrong by so much."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string((timestamp or time.time()) + seconds)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/jwks"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, WELL), (-20, NOTICE), (20, NOTICE), (-900, UNSAFE), (900, UNSAFE)]
)
async def test_an_issuer_whose_clock_is_wrong_is_told(seconds: float, expected: Severity) -> None:
    """RFC 7519, section 4.1.4: a small leeway for skew, and no more."""
    with skewed(seconds) as address:
        found = await clocks.of_issuers([Issuer(url="https://id", audience=("a",), jwks_url=address)])
    assert by_check(found) == {"clock of https://id": expected}


async def test_an_issuer_elsewhere_is_asked_by_the_environments_proxy_and_one_here_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the service asks for keys (`access/tokens.py`): what one reaches, the other does."""
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1")
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    elsewhere = Issuer(url="https://away", audience=("a",), jwks_url="https://id.example.invalid/jwks")
    async with proxy:
        with skewed(0) as address:
            found = await clocks.of_issuers([Issuer(url="https://id", audience=("a",), jwks_url=address), elsewhere])
    assert by_check(found) == {"clock of https://id": WELL, "clock of https://away": NOT_CHECKED}
    assert asked == [b"CONNECT id.example.invalid:443 HTTP/1.1\r\n"]


async def test_an_issuer_that_has_no_keys_there_is_told() -> None:
    """Nothing signed by it could be accepted. It is asked once, at its configured address."""
    with LocalIssuer() as issuer:
        there = Issuer(url=issuer.url, audience=("a",), jwks_url=issuer.jwks_url)
        wrong = Issuer(url="https://wrong", audience=("a",), jwks_url=f"{issuer.url}/none")
        away = Issuer(url="https://away", audience=("a",), jwks_url="http://127.0.0.1:1/jwks")
        found = await clocks.of_issuers([there, wrong, away])
        assert issuer.fetches[issuer.jwks_url.removeprefix(issuer.url)] == 1
    assert by_check(found) == {
        f"clock of {issuer.url}": WELL,
        "clock of https://wrong": UNSAFE,
        "clock of https://away": NOT_CHECKED,
    }


@pytest.mark.parametrize(
    ("ts", "expected"),
    [
        ("2026-11-22T14:28:49.041334386Z", WELL),
        ("2026-11-22T14:28:49Z", WELL),
        ("2026-11-22T14:28:39.5Z", NOTICE),
        ("2026-11-22T14:30:49.04Z", UNSAFE),
        ("", NOT_CHECKED),
        ("now", NOT_CHECKED),
    ],
)
def test_the_brokers_clock_is_compared(ts: str, expected: Severity) -> None:
    """Timers fire by the broker's clock, entries carry ours."""
    at = 1_795_357_729.0  # 2026-11-22T14:28:49Z
    assert clocks.of_broker(ts, at, at + 0.1).severity is expected
