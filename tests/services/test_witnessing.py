"""The client of a witness, against the real one and against ones that lie. Source: C2SP tlog-witness."""

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasktrail.projections.tlog.merkle import consistency_proof, leaf, root
from tasktrail.projections.tlog.note import COSIGNATURE, Checkpoint, Note, Verifier, cosign, sign, vkey
from tasktrail.services import configuration, witnessing
from tasktrail.services.http.server import Server
from tasktrail.services.witness import Answer, Request, Witness
from tasktrail.services.witnessing import Cosigned, WitnessClient, WitnessState
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("T2")

ORIGIN = "tasktrail/log"
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
LEAVES = [leaf(b"%d" % n) for n in range(100)]
HUGE = 10**18


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def checkpoint(size: int) -> Note:
    text = Checkpoint(ORIGIN, size, root(LEAVES[:size])).text()
    return Note(text, (sign(text, ORIGIN, raw(KEY), KEY.sign),))


async def consistency(old: int, new: int) -> Sequence[bytes]:
    return consistency_proof(old, new, lambda level, index: root(LEAVES[index << level : (index + 1) << level]))


class Liar:
    """A witness that answers what it likes."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.answer, self.asked = answer, 0

    def close(self) -> None:
        """Nothing is open."""

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return
        self.asked += 1
        answer = self.answer(Request.parse((await receive())["body"]))
        headers = [(b"content-type", answer.content_type.encode()), (b"location", b"/elsewhere")]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a person would not notice."""
    monkeypatch.setattr(witnessing, "EVERY_S", 0.02)
    monkeypatch.setattr(witnessing, "AGAIN_S", 0.02)
    monkeypatch.setattr(witnessing, "AGAIN_MOST_S", 0.02)


Started = Callable[[str, str], WitnessClient]


@pytest.fixture
async def started(tmp_path: Path) -> AsyncGenerator[Started]:
    """Makes and starts clients of the witness at a URL with a verifier key."""
    (tmp_path / "tlog").mkdir()
    clients: list[WitnessClient] = []

    def start(url: str, key: str) -> WitnessClient:
        cosigned = Cosigned(tmp_path / "tlog" / "cosigned")
        client = WitnessClient(configuration.Witness(url=url, vkey=key), cosigned, consistency)
        clients.append(client)
        client.start()
        return client

    yield start
    for client in clients:
        await client.stop()


async def cosigns(client: WitnessClient, size: int) -> None:
    """Have it cosign the checkpoint of this size."""
    client.offer(checkpoint(size))
    await until(lambda: client.shown.cosigned_size == size, what=f"a cosignature: {client.shown}")
    assert client.shown.state is WitnessState.COSIGNS


async def test_each_checkpoint_is_cosigned_also_by_a_second_witness_and_by_one_we_forgot(
    started: Started, tmp_path: Path
) -> None:
    """The old size is asked for when it is not known (409); cosignatures of one checkpoint are in one note."""
    cosigned = Cosigned(tmp_path / "tlog" / "cosigned")
    witnesses = [Witness.open(tmp_path / name, [vkey(ORIGIN, raw(KEY))]) for name in ("one", "two")]
    servers = [await Server.start(one, host="127.0.0.1", port=0) for one in witnesses]
    try:
        for size in (7, 7, 40):
            for witness, server in zip(witnesses, servers, strict=True):
                await cosigns(started(server.url, witness.vkey), size)
        client = started(servers[0].url, witnesses[0].vkey)
        for size in (40, 41):
            await cosigns(client, size)
        for size in (7, 40):
            note = cosigned.at(size)
            assert note is not None
            assert note.signed_by(Verifier.of(vkey(ORIGIN, raw(KEY))))
            assert all(note.cosigned_at(Verifier.of(one.vkey)) for one in witnesses)
        assert cosigned.sizes() == [7, 40, 41]
    finally:
        for server in servers:
            await server.stop()
        for one in witnesses:
            one.release()


def by(key: Ed25519PrivateKey, name: str) -> Callable[[Request], Answer]:
    """Cosigns everything, with this key under this name."""

    def answer(request: Request) -> Answer:
        line = cosign(request.note.text, name, raw(key), key.sign, 1).line()
        return Answer(200, "text/plain", f"{line}\n".encode())

    return answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (by(OTHER, "w"), "holds no cosignature by its key"),
        (by(KEY, "v"), "holds no cosignature by its key"),
        (lambda _: Answer(200, "text/plain", b"\xff\n"), "holds no cosignature by its key"),
        (lambda _: Answer(200, "text/plain", b"x" * 10**6), "holds no cosignature by its key"),
        (lambda _: Answer(302, "text/plain", b""), "it answers 302"),
        (lambda _: Answer(403, "text/plain", b"no\n"), "it answers 403: no"),
        (lambda _: Answer(409, "text/x.tlog.size", b"%d\n" % HUGE), f"it has cosigned a tree of size {HUGE}"),
        (lambda _: Answer(409, "text/x.tlog.size", b"9" * 6_000), "of the same size"),
        (lambda one: Answer(409, "text/x.tlog.size", b"%d\n" % ((one.old + 1) % 5)), "another size at every request"),
    ],
)
async def test_a_witness_that_does_not_cosign_is_told_and_asked_again(
    started: Started, tmp_path: Path, answer: Callable[[Request], Answer], told: str
) -> None:
    """Nothing it says is believed but a cosignature by its key; a wrong word of it does not last."""
    liar = Liar(answer)
    server = await Server.start(liar, host="127.0.0.1", port=0)
    try:
        client = started(server.url, vkey("w", raw(KEY), COSIGNATURE))
        client.offer(checkpoint(9))
        await until(lambda: client.shown.state is WitnessState.REFUSES, what="a refusal")
        assert told in client.shown.detail
        assert Cosigned(tmp_path / "tlog" / "cosigned").sizes() == []
        liar.answer = by(KEY, "w")
        await until(lambda: client.shown.cosigned_size == 9, what="a cosignature")
    finally:
        await server.stop()


async def test_a_witness_that_is_away_is_waited_for(started: Started) -> None:
    """Its port is bound all the while, so that it is nobody else's, and not listened on before the witness is there."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        client = started(f"http://127.0.0.1:{port}", vkey("w", raw(KEY), COSIGNATURE))
        client.offer(checkpoint(9))
        await until(lambda: client.shown.state is WitnessState.UNREACHABLE, what="that nobody answers")
        server = await Server.start(Liar(by(KEY, "w")), host="127.0.0.1", port=port)
        try:
            await until(lambda: client.shown.cosigned_size == 9, what="a cosignature")
        finally:
            await server.stop()


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_an_answer_that_says_later_is_no_refusal(started: Started, status: int) -> None:
    """RFC 9110 (5xx), RFC 6585 (429): as of a proxy before the witness, which knows nothing of trees."""
    liar = Liar(lambda _: Answer(status, "text/html", b"<h1>later</h1>"))
    server = await Server.start(liar, host="127.0.0.1", port=0)
    try:
        client = started(server.url, vkey("w", raw(KEY), COSIGNATURE))
        client.offer(checkpoint(9))
        await until(lambda: liar.asked > 1, what=f"a second request: {client.shown}")
        assert client.shown.state is WitnessState.UNREACHABLE
        assert client.shown.detail == f"it answers {status}: <h1>later</h1>"
        liar.answer = by(KEY, "w")
        await until(lambda: client.shown.cosigned_size == 9, what="a cosignature")
    finally:
        await server.stop()


async def test_what_nobody_foresaw_is_told_and_does_not_end_the_asking(
    started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """docs/checkpoints.md: state `failed`, the traceback in the log."""

    def broken(*_: object) -> None:
        message = "nobody foresaw this"
        raise RuntimeError(message)

    server = await Server.start(Liar(by(KEY, "w")), host="127.0.0.1", port=0)
    try:
        client = started(server.url, vkey("w", raw(KEY), COSIGNATURE))
        with monkeypatch.context() as patched:
            patched.setattr(Cosigned, "add", broken)
            client.offer(checkpoint(9))
            await until(lambda: client.shown.state is WitnessState.FAILED, what="the failure")
        assert client.shown.detail == "asking it failed: RuntimeError: nobody foresaw this"
        assert [one.exc_info is not None for one in caplog.records if "nobody foresaw" in one.getMessage()] == [True]
        await cosigns(client, 9)
    finally:
        await server.stop()
