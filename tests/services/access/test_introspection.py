"""Opaque tokens count for what their issuer says of them now, and for nothing when it does not answer.

Expectations come from RFC 7662 (introspection), RFC 6749 section 2.3.1 (client authentication) and issue 3 (only
configured issuers are ever contacted; a revocation is felt at once).
"""

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tasktrail.events.authority import Verification
from tasktrail.events.errors import InvalidRequest
from tasktrail.services.access import introspection
from tasktrail.services.access.introspection import Active, Introspecting, Introspection, judge, read_secret
from tasktrail.services.access.tokens import TOKEN_MAX_BYTES, Refusal
from tasktrail.testing.issuer import INTROSPECTION_PATH, LocalIssuer

AUDIENCE = "https://mcp.example/mcp"
NOW = 1_800_000_000


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, s: float = 1000.0) -> None:
        self.s = s

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def local() -> Iterator[LocalIssuer]:
    """Give a running issuer."""
    with LocalIssuer() as issuer:
        yield issuer


@pytest.fixture
def other() -> Iterator[LocalIssuer]:
    """Give another one."""
    with LocalIssuer() as issuer:
        yield issuer


def asked(issuer: LocalIssuer, folder: Path, **fields: object) -> Introspecting:
    """This issuer as it is configured."""
    known = Introspecting(
        url=issuer.url,
        address=issuer.introspection_url,
        audiences=(AUDIENCE,),
        client_id=issuer.client_id,
        secret_file=issuer.secret_file(folder),
    )
    return msgspec.structs.replace(known, **fields)


def said(verdict: Active | Refusal) -> str:
    """`ok`, or why not."""
    return verdict.verification.value if isinstance(verdict, Refusal) else "ok"


async def test_an_active_token_says_who(local: LocalIssuer, tmp_path: Path) -> None:
    """RFC 7662 section 2.2."""
    asking = Introspection([asked(local, tmp_path)])
    verdict = await asking.verify(local.issue_opaque("ana", "cli", "a b", aud=["x", AUDIENCE]))
    await asking.close()
    assert isinstance(verdict, Active)
    assert (verdict.iss, verdict.claims["sub"], verdict.claims["client_id"]) == (local.url, "ana", "cli")
    assert abs(verdict.verified_at_ms / 1000 - time.time()) < 60


@pytest.mark.requirement("A9")
async def test_a_revoked_token_is_refused_within_ten_seconds(local: LocalIssuer, tmp_path: Path) -> None:
    """Issue 3, revocation: an answer is kept for `FRESH_S` and not longer, so polls do not each ask the issuer."""
    clock = Clock()
    asking = Introspection([asked(local, tmp_path)], monotonic=clock)
    token = local.issue_opaque("ana", "cli", aud=AUDIENCE)
    assert said(await asking.verify(token)) == "ok"
    local.revoke(token)
    clock.s += introspection.FRESH_S - 0.1
    assert said(await asking.verify(token)) == "ok"
    assert local.fetches[INTROSPECTION_PATH] == 1
    clock.s += 0.1
    assert said(await asking.verify(token)) == "inactive"
    await asking.close()
    assert introspection.FRESH_S <= 10


async def test_a_kept_answer_ends_with_the_token(local: LocalIssuer, tmp_path: Path) -> None:
    """RFC 7662 section 4: no cached answer outlives `exp`."""
    now = Clock(time.time())
    asking = Introspection([asked(local, tmp_path)], now=now, monotonic=Clock())
    token = local.issue_opaque("ana", "cli", aud=AUDIENCE, ttl_s=5)
    assert said(await asking.verify(token)) == "ok"
    now.s += 6
    assert said(await asking.verify(token)) == "expired"
    await asking.close()


async def test_many_callers_with_one_token_cost_the_issuer_one_request(local: LocalIssuer, tmp_path: Path) -> None:
    """One request at a time per token; one caller who leaves takes nobody else's answer."""
    asking = Introspection([asked(local, tmp_path)])
    token = local.issue_opaque("ana", "cli", aud=AUDIENCE)
    waiting = [asyncio.create_task(asking.verify(token)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert [said(await one) for one in waiting[1:]] == ["ok"] * 19
    await asking.close()
    assert local.fetches[INTROSPECTION_PATH] == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"active": True, "aud": AUDIENCE, "sub": "ana"}, "ok"),
        ({"active": True, "aud": AUDIENCE, "client_id": "cli", "exp": NOW + 1, "token_type": "bearer"}, "ok"),
        ({"active": True, "aud": AUDIENCE, "iss": "https://id.example"}, "ok"),
        ({"active": False, "aud": AUDIENCE, "sub": "ana"}, "inactive"),
        ({"active": True, "sub": "ana"}, "wrong_audience"),
        ({"active": True, "sub": "ana", "aud": ["https://other.example"]}, "wrong_audience"),
        ({"active": True, "aud": AUDIENCE, "iss": "https://evil.example"}, "wrong_issuer"),
        ({"active": True, "aud": AUDIENCE, "iss": None}, "wrong_issuer"),
        ({"active": True, "aud": AUDIENCE, "exp": NOW}, "expired"),
        ({"active": True, "aud": AUDIENCE, "exp": "never"}, "malformed"),
        ({"active": True, "aud": AUDIENCE, "nbf": NOW + 61}, "not_yet_valid"),
        ({"active": True, "aud": AUDIENCE, "sub": 5}, "malformed"),
        ({"active": True, "aud": AUDIENCE, "sub": "a" * 513}, "malformed"),
        ({"active": True, "aud": AUDIENCE, "token_type": "DPoP"}, "malformed"),
        ({"active": True, "aud": AUDIENCE, "token_type": "refresh_token"}, "malformed"),
    ],
    ids=str,
)
def test_an_answer_counts_for_us_and_now_or_not_at_all(answer: dict[str, Any], expected: str, tmp_path: Path) -> None:
    """RFC 7662 section 4: the resource server checks audience, dates and what else the answer says."""
    issuer = Introspecting(
        url="https://id.example",
        address="https://id.example/introspect",
        audiences=("https://second.example", AUDIENCE),
        client_id="tasktrail",
        secret_file=tmp_path,
    )
    assert said(judge(json.dumps(answer).encode(), issuer, NOW)) == expected


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"<html>"),
        (200, b"{}"),
        (200, b"[true]"),
        (200, b'{"active": "true"}'),
        (200, b'{"active": 1}'),
        (200, b'{"active": true, "active": false}'),
        (200, b'{"active": true, "exp": NaN}'),
        (200, b" " * (introspection.ANSWER_MAX_BYTES + 1)),
        (200, b"[" * 1000 + b"]" * 1000),
        (302, b"/elsewhere"),
        (401, b"{}"),
        (500, b'{"active": true}'),
    ],
    ids=["html", "empty", "array", "text", "number", "twice", "nan", "large", "deep", "redirect", "401", "500"],
)
async def test_what_is_no_answer_lets_nobody_in(local: LocalIssuer, tmp_path: Path, answer: tuple[int, bytes]) -> None:
    """Fail closed; no redirect is followed, nothing large is read."""
    local.answers["/elsewhere"] = (200, json.dumps({"active": True, "aud": AUDIENCE, "sub": "ana"}).encode())
    local.answers[INTROSPECTION_PATH] = answer
    asking = Introspection([asked(local, tmp_path)])
    assert said(await asking.verify("opaque")) == "not_checked"
    await asking.close()
    assert local.fetches == {INTROSPECTION_PATH: 1}


async def test_a_failing_issuer_is_left_alone_for_a_moment(local: LocalIssuer, tmp_path: Path) -> None:
    """An issuer in trouble is not made to suffer more; a token that it chokes on holds nobody else up."""
    clock = Clock()
    asking = Introspection([asked(local, tmp_path)], monotonic=clock)
    token = local.issue_opaque("ana", "cli", aud=AUDIENCE)
    for status, times in ((400, 9), (503, introspection.FAILURES_MAX)):
        local.answers[INTROSPECTION_PATH] = (status, b"{}")
        for _ in range(times):
            assert said(await asking.verify("chokes")) == "not_checked"
    asked_for = 9 + introspection.FAILURES_MAX
    assert local.fetches[INTROSPECTION_PATH] == asked_for
    del local.answers[INTROSPECTION_PATH]
    assert said(await asking.verify(token)) == "not_checked"
    assert local.fetches[INTROSPECTION_PATH] == asked_for
    clock.s += introspection.RETRY_S
    assert said(await asking.verify(token)) == "ok"
    await asking.close()


async def test_a_strangers_garbage_keeps_the_issuer_from_nobody_else(local: LocalIssuer, tmp_path: Path) -> None:
    """A token of a stranger that the issuer chokes on says nothing of the issuer; a single failure neither."""
    clock = Clock()
    asking = Introspection([asked(local, tmp_path)], monotonic=clock)
    token = local.issue_opaque("ana", "cli", aud=AUDIENCE)
    assert said(await asking.verify(token, peer="203.0.113.5")) == "ok"
    clock.s += introspection.FRESH_S
    local.answers[INTROSPECTION_PATH] = (500, b"{}")
    for _ in range(introspection.FAILURES_MAX):
        await asking.verify("chokes", peer="203.0.113.5")
    del local.answers[INTROSPECTION_PATH]
    fresh = local.issue_opaque("ben", "cli", aud=AUDIENCE)
    assert said(await asking.verify(fresh, peer="203.0.113.5")) == "not_checked", "it comes from where garbage does"
    assert said(await asking.verify(fresh, peer="203.0.113.6")) == "ok"
    assert said(await asking.verify(token, peer="203.0.113.5")) == "ok", "it is known"
    await asking.close()


async def test_a_flood_of_garbage_leaves_places_to_others(
    local: LocalIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places are shared out: to known tokens, and among the peers of unknown ones."""
    released, held = threading.Event(), Counter[str]()
    answering = local.introspected

    def slow(authorization: str, form: bytes) -> tuple[int, bytes]:
        if b"garbage" in form:
            held["garbage"] += 1
            released.wait(30)
        return answering(authorization, form)

    monkeypatch.setattr(introspection, "ANSWER_S", 30)
    monkeypatch.setattr(local, "introspected", slow)
    clock = Clock()
    asking = Introspection([asked(local, tmp_path)], monotonic=clock)
    known = local.issue_opaque("ana", "cli", aud=AUDIENCE)
    assert said(await asking.verify(known, peer="a")) == "ok"
    clock.s += introspection.FRESH_S
    flood = [asyncio.create_task(asking.verify(f"garbage{peer}{n}", peer=peer)) for peer in "ab" for n in range(500)]
    async with asyncio.timeout(20):
        assert said(await asking.verify(known, peer="a")) == "ok"
        assert said(await asking.verify(local.issue_opaque("ben", "cli", aud=AUDIENCE), peer="c")) == "ok"
    assert held["garbage"] <= 2 * introspection.EACH_AT_ONCE
    at_once = [said(one.result()) for one in flood if one.done()]
    assert at_once == ["not_checked"] * (1000 - 2 * introspection.EACH_WAITING_MAX)
    released.set()
    assert {said(one) for one in await asyncio.gather(*flood)} == {"not_checked", "inactive"}
    await asking.close()


async def test_so_many_callers_wait_for_one_answer(local: LocalIssuer, tmp_path: Path) -> None:
    """Bounded for one token, too; the others come again."""
    asking = Introspection([asked(local, tmp_path)])
    token = local.issue_opaque("ana", "cli", aud=AUDIENCE)
    more = introspection.CALLERS_MAX + 5
    found = [said(one) for one in await asyncio.gather(*(asking.verify(token) for _ in range(more)))]
    assert found == ["ok"] * introspection.CALLERS_MAX + ["not_checked"] * 5
    await asking.close()


async def test_an_issuer_that_says_nothing_is_waited_for_briefly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: LocalIssuer
) -> None:
    """A hanging issuer costs a caller `ANSWER_S`; too many waiting callers are told at once."""
    monkeypatch.setattr(introspection, "ANSWER_S", 0.3)
    monkeypatch.setattr(introspection, "EACH_WAITING_MAX", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/introspect"
        asking = Introspection([asked(local, tmp_path, address=address)])
        waiting = asyncio.create_task(asking.verify("one"))
        await asyncio.sleep(0)
        assert said(await asking.verify("two")) == "not_checked"
        assert not waiting.done()
        assert said(await waiting) == "not_checked"
        await asking.close()


async def test_of_several_issuers_each_is_asked_until_one_knows_the_token(
    local: LocalIssuer, other: LocalIssuer, tmp_path: Path
) -> None:
    """An opaque token does not say whose it is; one that an issuer knows is shown to no further one."""
    asking = Introspection([asked(local, tmp_path), asked(other, tmp_path)])
    first, second = local.issue_opaque("ana", "cli", aud=AUDIENCE), other.issue_opaque("ana", "cli", aud=AUDIENCE)
    found = [await asking.verify(token) for token in (first, second)]
    assert [one.iss for one in found if isinstance(one, Active)] == [local.url, other.url]
    assert (local.fetches[INTROSPECTION_PATH], other.fetches[INTROSPECTION_PATH]) == (2, 1)
    assert said(await asking.verify("nobody's")) == "inactive"
    elsewhere = local.issue_opaque("ana", "cli", aud="https://elsewhere.example")
    assert said(await asking.verify(elsewhere)) == "wrong_audience"
    assert other.fetches[INTROSPECTION_PATH] == 2
    other.answers[INTROSPECTION_PATH] = (503, b"")
    assert said(await asking.verify("somebody's, perhaps")) == "not_checked"
    assert said(await Introspection([]).verify("x")) == "wrong_issuer"
    await asking.close()


@pytest.mark.parametrize("token", ["", "é", "a\nb", "\ud800", "x" * (TOKEN_MAX_BYTES + 1)], ids=ascii)
async def test_what_is_no_token_is_asked_nobody(local: LocalIssuer, tmp_path: Path, token: str) -> None:
    """RFC 6750 section 2.1: a bearer token is printable ASCII."""
    assert said(await Introspection([asked(local, tmp_path)]).verify(token)) == "malformed"
    assert not local.fetches


async def test_few_answers_are_kept(local: LocalIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whoever presents how many tokens."""
    monkeypatch.setattr(introspection, "ANSWERS_MAX", 2)
    asking = Introspection([asked(local, tmp_path)], monotonic=Clock())
    for token in ("one", "two", "three", "one"):
        assert said(await asking.verify(token)) == "inactive"
    await asking.close()
    assert local.fetches[INTROSPECTION_PATH] == 4


@pytest.mark.requirement("R4")
async def test_neither_token_nor_secret_is_in_any_log(
    local: LocalIssuer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R4: a log is a store too."""
    caplog.set_level("DEBUG")
    asking = Introspection([asked(local, tmp_path)])
    token = local.issue_opaque("ana", "cli", aud=AUDIENCE)
    await asking.verify(token)
    local.answers[INTROSPECTION_PATH] = (500, b"")
    await asking.verify(other_token := token[::-1])
    await asking.close()
    assert "no answer from" in caplog.text
    assert not [text for text in (token, other_token, local.client_secret) if text in caplog.text]


def test_an_unsafe_configuration_is_refused(local: LocalIssuer, tmp_path: Path) -> None:
    """RFC 7662 section 4: over TLS, with a client of our own; the secret is its owner's alone."""
    for wrong in ({"address": "http://id.example/introspect"}, {"client_id": ""}, {"audiences": ()}, {"url": ""}):
        with pytest.raises(InvalidRequest):
            asked(local, tmp_path, **wrong)
    open_to_all = tmp_path / "open"
    open_to_all.touch(mode=0o644)
    empty = tmp_path / "empty"
    empty.touch(mode=0o600)
    for path, said_ in ((tmp_path / "none", "cannot read"), (open_to_all, "chmod 600"), (empty, "is empty")):
        with pytest.raises(InvalidRequest, match=said_):
            read_secret(path)
        with pytest.raises(InvalidRequest, match=said_):
            Introspection([asked(local, tmp_path, secret_file=path)])


async def test_client_and_secret_travel_as_the_standard_says(local: LocalIssuer, tmp_path: Path) -> None:
    """RFC 6749 section 2.3.1: form-encoded before they are joined by a colon."""
    local.client_id, local.client_secret = "task:trail é", "a:b%c +d"
    asking = Introspection([asked(local, tmp_path)])
    assert said(await asking.verify(local.issue_opaque("ana", "cli", aud=AUDIENCE))) == Verification.OK.value
    await asking.close()
