"""What operators order over HTTP, on real uvicorn and a real trail. Issue "Authority"; design, section 1."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.services.http.store_surface import StoreSurface
from tests.services.operation import Operation, operation
from tests.services.orders import ref_of
from tests.services.scene import open_store, play

from tasktrail.events.facts import AccessDenied, HoldPlaced, PrincipalRevoked
from tasktrail.services.access.claims import digest
from tasktrail.services.access.policy import shipped
from tasktrail.services.configuration import Operator
from tasktrail.services.http.app import create_app
from tasktrail.services.http.edge import Hosts
from tasktrail.services.http.operating import routes
from tasktrail.services.http.server import Server
from tasktrail.services.operators import Asker
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import stored
from tasktrail.testing.scenario import ANA

RESPONDER, OLGA, ROBO = "ttr_" + "t" * 43, "olga's-token", "robo's-token"
A = ref_of("a")
WITHIN_S = 20.0
WHY = {"reason": "an incident"}
SECRET = "a-bearer-token-nobody-may-see-4711"


def named(name: str, token: str, *rights: str) -> Operator:
    return Operator(name=name, sha256=hashlib.sha256(token.encode()).hexdigest(), rights=rights)


NAMED = (named("olga", OLGA, "read", "hold"), named("robo", ROBO, "revoke"))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "tasktrail")


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Operation]:
    async with operation(fresh_nats, tmp_path) as made:
        yield made


@pytest.fixture
async def surface(one: Operation, tmp_path: Path) -> AsyncIterator[StoreSurface]:
    scene = play()
    store = open_store(scene, tmp_path / "audit.duckdb")
    yield StoreSurface(store, scene, one.admission)
    store.close()


@pytest.fixture
async def url(one: Operation, surface: StoreSurface) -> AsyncIterator[str]:
    acting = routes(one.operating, one.policing)
    app = create_app(surface, token=RESPONDER, hosts=Hosts("127.0.0.1"), operators=NAMED, acting=acting)
    server = await Server.start(app, host="127.0.0.1", port=0)
    yield server.url
    await server.stop()


@asynccontextmanager
async def as_operator(url: str, token: str) -> AsyncGenerator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        base_url=url + "/api/v1", headers=headers, timeout=WITHIN_S, trust_env=False
    ) as opened:
        yield opened


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with as_operator(url, RESPONDER) as opened:
        yield opened


def is_problem(answer: httpx.Response, status: int, reason: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["reason"] == reason
    return str(answer.json()["detail"])


def done(answer: httpx.Response) -> Any:  # noqa: ANN401 - any JSON
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.requirement("A9")
async def test_an_operator_whose_token_was_revoked_orders_and_reads_nothing(
    client: httpx.AsyncClient, url: str, one: Operation
) -> None:
    """By name, by the token itself or by its digest; who holds the data directory's own token brings it back."""
    await one.make(A)
    for named in (
        {"kind": "principal", "iss": "tasktrail", "sub": "olga"},
        {"kind": "token", "token": OLGA},
        {"kind": "token", "token_hash": digest(OLGA)},
    ):
        async with as_operator(url, OLGA) as olga:
            done(await olga.get("/handles"))
            revoked = done(await client.post("/revocations", json={**named, **WHY}))
            for answer in (
                await olga.get("/handles"),
                await olga.get("/tasks"),
                await olga.get("/policy"),
                await olga.post("/holds", json={"task": A, **WHY}),
            ):
                is_problem(answer, 403, "not_authorised")
            [(_, event)] = (await one.events(AccessDenied))[-1:]
            assert isinstance(event, AccessDenied)
            assert event.reasons == {"caller-revoked": 1}
            done(await client.post("/revocations/lift", json={"revocation": revoked["revocation"], **WHY}))
            done(await olga.get("/handles"))


@pytest.mark.requirement("A9")
async def test_a_revocation_is_ordered_listed_and_lifted(client: httpx.AsyncClient, one: Operation) -> None:
    await one.make(A)
    order = {"kind": "principal", "iss": ANA.iss, "sub": ANA.sub, **WHY}
    revoked = done(await client.post("/revocations", json=order))
    assert (revoked["kind"], revoked["tasks"]) == ("principal", 1)
    [listed] = done(await client.get("/revocations"))
    assert (listed["id"], listed["sub"], listed["reason"]) == (revoked["revocation"], "ana", "an incident")
    lift = {"revocation": revoked["revocation"], **WHY}
    assert done(await client.post("/revocations/lift", json=lift))["revocation"] == revoked["revocation"]
    assert done(await client.get("/revocations")) == []
    is_problem(await client.post("/revocations/lift", json=lift), 404, "no_such_revocation")


@pytest.mark.requirement("R4")
async def test_a_token_to_revoke_is_in_the_body_and_nowhere_else(client: httpx.AsyncClient, one: Operation) -> None:
    answer = await client.post("/revocations", json={"kind": "token", "token": SECRET + "\n", **WHY})
    assert SECRET not in answer.text
    [(_, event)] = await one.events(PrincipalRevoked)
    assert isinstance(event, PrincipalRevoked)
    assert event.token_hash == digest(SECRET)
    assert not any(SECRET.encode() in message.body for message in await stored(one.parts.js))


@pytest.mark.requirement("M7")
async def test_handles_are_listed_and_stopped_in_bulk(client: httpx.AsyncClient, one: Operation) -> None:
    await one.make(A)
    [shown] = done(await client.get("/handles", params={"sub": "ana", "lapsed": "false", "live": "true"}))
    assert (shown["task_ref"], shown["owner"]["client_id"], shown["entropy"]) == (A, "desk", "strong")
    assert done(await client.get("/handles", params={"lapsed": "true"})) == []
    order = {"tasks": [A, ref_of("nobody's")], **WHY}
    stopped, unknown = done(await client.post("/handles/cancel", json=order))
    assert (stopped["task"], stopped["outcome"], unknown["outcome"]) == (A, "accepted", "no_such_task")
    assert stopped["entry"] in {entry.id for entry in await one.entries()}


async def test_grants_and_holds_are_given_and_ended(client: httpx.AsyncClient, url: str, one: Operation) -> None:
    await one.make(A)
    grant = {"task": A, "iss": ANA.iss, "sub": "ben", "mode": "user", "rights": ["get"], **WHY}
    granted = done(await client.post("/grants", json=grant))
    withdraw = {"task": A, "grant": granted["id"], **WHY}
    assert done(await client.post("/grants/withdraw", json=withdraw))["id"] == granted["id"]
    is_problem(await client.post("/grants/withdraw", json=withdraw), 409, "refused")
    held = done(await client.post("/holds", json={"task": A, "case_id": "C-7", **WHY}))
    release = {"task": A, "hold": held["id"], **WHY}
    assert is_problem(await client.post("/holds/release", json=release), 403, "same_person").startswith(
        "a hold takes two people: responder "
    )
    async with as_operator(url, OLGA) as other:
        assert done(await other.post("/holds/release", json=release))["id"] == held["id"]
    is_problem(await client.post("/holds", json={"task": ref_of("nobody's"), **WHY}), 404, "no_such_task")


@pytest.mark.requirement("P5")
async def test_a_policy_is_activated_shown_and_explained(client: httpx.AsyncClient, one: Operation) -> None:
    text = shipped() + '\n@id("none") forbid (principal, action == Action::"hold", resource);\n'
    activated = done(await client.post("/policy", json={"text": text, "version": "v2", **WHY}))
    assert done(await client.get("/policy"))["sha256"] == activated["sha256"]
    explained = done(await client.post("/policy/explain", json={"entry": activated["entry"]}))
    assert explained["same"]
    assert explained["recorded"]["policy_version"] == "shipped-1"
    is_problem(await client.post("/policy/explain", json={"entry": "none"}), 404, "no_such_entry")
    refused = await client.post("/policy", json={"text": "permit(", "version": "v3", **WHY})
    assert "nothing was activated" in is_problem(refused, 400, "invalid_policy")
    await one.make(A)
    assert "(none)" in is_problem(await client.post("/holds", json={"task": A, **WHY}), 403, "not_authorised")


async def test_who_orders_is_the_operator_whose_token_it_is(url: str, one: Operation, surface: StoreSurface) -> None:
    await one.make(A)
    async with as_operator(url, OLGA) as olga:
        done(await olga.post("/holds", json={"task": A, **WHY}))
        done(await olga.get("/tasks"))
    [(entry, event)] = await one.events(HoldPlaced)
    assert isinstance(event, HoldPlaced)
    assert event.by == "olga"
    assert entry.authority.principal is not None
    assert entry.authority.credential is not None
    assert entry.authority.request is not None
    assert entry.authority.principal.sub == "olga"
    assert entry.authority.credential.token_hash == digest(OLGA)
    assert entry.authority.request.address == "127.0.0.1"
    asker = Asker(token_hash=digest(OLGA), address="127.0.0.1", operator="olga", rights=("read", "hold"))
    assert surface.asked == [("tasks", asker)]


@pytest.mark.requirement("T1")
async def test_each_route_needs_its_right_and_each_refusal_is_on_the_trail(
    url: str, one: Operation, surface: StoreSurface
) -> None:
    """Feature T1: every denied access is recorded; which path there is at all, and the document, is nobody's secret."""
    async with as_operator(url, OLGA) as olga:
        detail = is_problem(
            await olga.post("/revocations/lift", json={"revocation": "r", **WHY}), 403, "not_authorised"
        )
        assert detail == "operator olga may not do this: it needs `revoke`; the refusal is on record"
    async with as_operator(url, ROBO) as robo:  # acts, but does not read
        done(await robo.post("/revocations", json={"kind": "client", "client_id": "d", **WHY}))
        for path in ("/tasks", "/tail", "/revocations", "/handles", "/policy"):
            is_problem(await robo.get(path), 403, "not_authorised")
        is_problem(await robo.post("/timeline", json={"task": A}), 403, "not_authorised")
        is_problem(await robo.get("/policyholders"), 404, "not_found")
        done(await robo.get(url + "/schema/openapi.json"))
    denied: list[tuple[str, str]] = []
    for entry, event in await one.events(AccessDenied):
        assert isinstance(event, AccessDenied)
        assert entry.authority.principal is not None
        denied.append((entry.authority.principal.sub, event.method))
    looked_at = ("tasks", "tail None", "revocations", "handles", "policy", "timeline")
    assert denied == [("olga", "operator/lift"), *(("robo", f"operator/{what}") for what in looked_at)]
    async with as_operator(url, "nobody's") as nobody:
        is_problem(await nobody.post("/revocations", json={}), 401, "unauthorised")
    assert surface.asked == []


MISORDERED: list[tuple[str, object, str]] = [
    ("/revocations", {"kind": "client", "client_id": "d"}, "reason"),
    ("/revocations", {"kind": "client", "client_id": "d", "reason": "no"}, "reason"),
    ("/revocations", {"kind": "client", "client_id": "d", "reason": "x" * 501}, "reason"),
    ("/revocations", {"kind": "device", **WHY}, "kind"),
    ("/revocations", {"kind": "client", "client": "d", **WHY}, "client"),
    ("/revocations", {"kind": "token", "token_hash": "short", **WHY}, "token_hash"),
    ("/handles/cancel", {"tasks": [], **WHY}, "tasks"),
    ("/handles/cancel", {"tasks": ["t"] * 1_001, **WHY}, "tasks"),
    ("/grants", {"task": A, "rights": ["own"], **WHY}, "rights"),
    ("/grants", {"task": A, "rights": ["get"], "until_ms": -1, **WHY}, "until_ms"),
    ("/policy", {"text": "x", "version": "no spaces", **WHY}, "version"),
]


async def test_an_order_that_is_not_as_documented_is_refused_by_member(client: httpx.AsyncClient) -> None:
    for path, order, member in MISORDERED:
        assert member in is_problem(await client.post(path, json=order), 400, "invalid_request"), (path, member)
    body = b'{"revocation":"a","revocation":"b","reason":"twice"}'
    answer = await client.post("/revocations/lift", content=body, headers={"Content-Type": "application/json"})
    assert "repeated member" in is_problem(answer, 400, "invalid_request")
    is_problem(await client.post("/revocations", content=b"{}"), 415, "unsupported_media_type")
    is_problem(await client.get("/handles", params={"task": A}), 400, "invalid_request")


async def test_the_largest_bulk_order_and_the_largest_policy_fit(client: httpx.AsyncClient) -> None:
    """1,000 references of 32 characters, and 60,000 characters, in 64 KiB."""
    order = {"tasks": [f"{number:032}" for number in range(1_000)], "reason": "x" * 500, "case_id": "y" * 200}
    assert len(json.dumps(order)) < 64 * 1024
    refused = await client.post("/policy", json={"text": "/" * 60_000, "version": "v", **WHY})
    is_problem(refused, 400, "invalid_policy")


async def test_the_openapi_document_has_every_route(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {RESPONDER}"}, trust_env=False) as at:
        paths = done(await at.get("/schema/openapi.json"))["paths"]
    for path, methods in (
        ("revocations", {"get", "post"}),
        ("revocations/lift", {"post"}),
        ("handles", {"get"}),
        ("handles/cancel", {"post"}),
        ("grants", {"post"}),
        ("grants/withdraw", {"post"}),
        ("holds", {"post"}),
        ("holds/release", {"post"}),
        ("policy", {"get", "post"}),
        ("policy/explain", {"post"}),
    ):
        found = paths[f"/api/v1/{path}"]
        assert set(found) == methods
        assert all({"401", "403", "503"} <= set(route["responses"]) for route in found.values())


async def test_orders_at_the_same_time_do_not_disturb_each_other(client: httpx.AsyncClient, one: Operation) -> None:
    orders = [client.post("/revocations", json={"kind": "client", "client_id": f"c{n}", **WHY}) for n in range(32)]
    answers = [done(answer) for answer in await asyncio.gather(*orders)]
    assert len({answer["revocation"] for answer in answers}) == len(one.parts.governance.revocations) == 32
