"""A handle opens its task only for the identity context that made it. Sources: design sections 1 and 6, SEP-2663
(Security Considerations: auth binding), features A1, A4 and A6."""

import time
from pathlib import Path
from typing import Any

import pytest
from mcp.server.auth.provider import AccessToken

from tasktrail.events.authority import Level
from tasktrail.events.facts import AccessDenied, TaskCreated
from tasktrail.testing.waiting import until

from .client import Client
from .place import Mode, Place, carrying, only, opened, refused
from .strangers import METHODS, UNKNOWN, ask

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODES: list[Mode] = ["embedded", "connected"]


def strangers(place: Place) -> dict[str, tuple[Client, tuple[str, ...]]]:
    """Everybody who is not Ana with the client `cli`, and in what they differ from her."""
    other = place.other_issuer
    return {
        "another user": (place.client("eve"), ("sub",)),
        "another client": (place.client("ana", "portal"), ("client_id",)),
        "no client": (Client(place.url, place.token("ana", None)), ("client_id",)),
        "another issuer": (Client(place.url, place.token(issuer=other)), ("tenant", "iss")),
        "subject and client swapped": (place.client("cli", "ana"), ("sub", "client_id")),
        "a user named like the client": (place.client("ana cli", "cli"), ("sub",)),
    }


@pytest.mark.requirement("A1", "A4")
async def test_strangers_get_what_an_unknown_id_gets_and_change_nothing(place: Place) -> None:
    """Features A1 and A4: get, update and cancel of somebody else's task: the bytes of an id that never was, while the
    task goes on unmoved; the trail of the owner's tenant says who it was and in what they differed."""
    async with place.client() as ana:
        made = await ana.start("asks")
        before = await ana.until(made["taskId"], "input_required")
        (key,) = before["inputRequests"]
        for who, (stranger, _) in strangers(place).items():
            async with stranger:
                await _is_a_stranger(stranger, made["taskId"], key, who)
        assert (await ana.get(made["taskId"])).result == before
        await ana.update(made["taskId"], {key: {"action": "accept", "content": {"age": 41}}})
        done = await ana.until(made["taskId"], "completed")
        assert done["result"]["content"][0]["text"] == "accept 41"
    assert "CancelRequested" not in await place.trail.names(made["taskId"])

    async def all_told() -> bool:
        found = await place.trail.denied(place.trail.ref(made["taskId"]))
        seen = {entry.authority.binding.differs for entry in found if entry.authority.binding}
        return seen == {differs for _, differs in strangers(place).values()}

    await until(all_told)
    for entry in await place.trail.denied(place.trail.ref(made["taskId"])):
        assert entry.tenant == "acme"
        told = only([entry], AccessDenied)
        assert told.code == -32602
        assert told.reasons["other-identity-context"] == told.refs[place.trail.ref(made["taskId"])]
        assert entry.authority.decision is not None
        assert entry.authority.decision.effect == "deny"


async def _is_a_stranger(stranger: Client, task_id: str, key: str, who: str) -> None:
    unknown = await ask(stranger, "tasks/get", UNKNOWN)
    for method in METHODS:
        assert await ask(stranger, method, task_id) == unknown, (who, method)
        assert await ask(stranger, method, task_id, name=task_id) == unknown, (who, method)
    tried = {key: {"action": "accept", "content": {"age": 1}}}
    assert (await stranger.update(task_id, tried)).refusal == unknown, who
    async with stranger.listening(taskIds=[task_id]) as stream:
        granted, end = await stream.rest()
        assert granted["params"]["notifications"] == {"taskIds": []}, who
        assert end["result"]["resultType"] == "complete", who


@pytest.mark.requirement("A1", "A6")
async def test_the_same_principal_comes_back_with_another_token_and_connection(place: Place) -> None:
    """Feature A6: a connection, a session or a single token is never what a task is bound to."""
    async with place.client("rosa") as rosa:
        made = await rosa.start("asks")
    async with place.client("rosa") as again:
        assert (await again.until(made["taskId"], "input_required"))["taskId"] == made["taskId"]
        await again.cancel(made["taskId"])
    async with place.client("rosa") as once_more:
        await once_more.until(made["taskId"], "cancelled")


@pytest.mark.requirement("A1")
async def test_without_a_valid_token_there_is_no_answer_at_all(place: Place) -> None:
    """RFC 6750: 401 from the SDK's bearer check, before any extension is asked."""
    async with place.client() as ana:
        made = await ana.start("echo", text="x")
    expired = place.issuer.issue("ana", "cli", "tasks", ttl_s=-10, aud=place.url)
    elsewhere = place.issuer.issue("ana", "cli", "tasks", aud="https://other.example/mcp")
    for token in (None, "nonsense", expired, elsewhere):
        async with Client(place.url, token) as nobody:
            assert await nobody.status("tasks/get", {"taskId": made["taskId"]}) == 401


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("A1", "A4")
async def test_anonymous_callers_do_not_reach_the_tasks_of_others(mode: Mode, tmp_path: Path) -> None:
    """The same tasktrail behind a server that asks for no tokens: nobody in particular is not Ana."""
    async with opened(mode, tmp_path) as place, place.client() as ana:
        made = await ana.start("echo", text="x")
        await ana.until(made["taskId"], "completed")
    async with opened(mode, tmp_path, tokens=False) as place, Client(place.url) as nobody:
        for method in METHODS:
            assert await ask(nobody, method, made["taskId"]) == await ask(nobody, method, UNKNOWN)
        theirs = await nobody.start("echo", text="y")
        await nobody.until(theirs["taskId"], "completed")
        denial = await refused(place, place.trail.ref(made["taskId"]), "other-identity-context")
        assert denial.authority.principal is not None
        assert (denial.authority.principal.kind, denial.authority.principal.level) == ("anonymous", Level.CLAIMED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("A1")
async def test_anonymous_callers_hold_no_tasks_where_that_is_not_allowed(mode: Mode, tmp_path: Path) -> None:
    """Setting `anonymous`: then a task needs somebody to belong to, and the refusal is on the trail."""
    async with opened(mode, tmp_path, tokens=False, anonymous=False) as place, Client(place.url) as nobody:
        refusal = await nobody.call("echo", text="x")
        assert (refusal.status, refusal.error["code"]) == (200, -32001)
        assert "anonymous-not-allowed" in refusal.error["message"]
        for method in METHODS:
            assert (await nobody.send(method, {"taskId": UNKNOWN, "inputResponses": {}})).error["code"] == -32602
        await refused(place, place.trail.ref(UNKNOWN), "anonymous-not-allowed")


class FixedTokens:
    """A verifier of somebody else's: these texts, these principals. What it says counts as its word."""

    def __init__(self, known: dict[str, tuple[str, dict[str, Any]]]) -> None:
        self._known = known

    async def verify_token(self, token: str) -> AccessToken | None:
        """The token, if it is one of them."""
        if token not in self._known:
            return None
        client_id, claims = self._known[token]
        return AccessToken(
            token=token,
            client_id=client_id,
            scopes=["tasks"],
            expires_at=int(time.time()) + 300,
            subject=claims.get("sub"),
            claims=claims,
        )


LONG = "s" * 600
ISS = "https://id.example"
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "long-a": ("cli", {"iss": ISS, "sub": LONG + "a", "jti": "1"}),
    "long-b": ("cli", {"iss": ISS, "sub": LONG + "b", "jti": "2"}),
    "odd-a": ("cli", {"iss": ISS, "sub": "x\0a", "exp": float("inf"), "iat": float("nan"), "auth_time": 10**40}),
    "odd-b": ("cli", {"iss": ISS, "sub": "x?a"}),
    "claims-other": ("cli", {"iss": ISS, "sub": "ana", "aud": 5, "act": {"sub": {"not": "text"}}, "amr": [1, "pwd"]}),
    "no-issuer": ("cli", {"sub": "ana"}),
    "no-subject": ("cli", {"iss": ISS}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("A1", "A5")
async def test_identities_are_compared_whole_however_long_or_odd(mode: Mode, tmp_path: Path) -> None:
    """Design section 6: a tuple, never joined, never cut. What another verifier says is `asserted`, embedded too."""
    async with opened(mode, tmp_path, verifier=FixedTokens(KNOWN)) as place:
        made: dict[str, str] = {}
        for token in KNOWN:
            async with Client(place.url, token) as client:
                made[token] = (await client.start("echo", text=token))["taskId"]
        for token in KNOWN:
            async with Client(place.url, token) as client:
                unknown = await ask(client, "tasks/get", UNKNOWN)
                for owner, task_id in made.items():
                    answer = await client.get(task_id)
                    assert ("result" in answer.message) is (owner == token), (owner, token)
                    assert owner == token or answer.refusal == unknown
        for token, task_id in made.items():
            entry = carrying(await place.trail.of(task_id), TaskCreated)
            assert entry.authority.principal is not None
            assert entry.authority.credential is not None
            assert {entry.authority.principal.level, entry.authority.credential.level} == {Level.ASSERTED}, token
