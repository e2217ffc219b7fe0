"""The auth-binding matrix: every kind of caller against every method and binding mode; no wrong allow, no wrong deny.

What is promised is in `table.py`, with its sources. A cell that turns a caller away is also held against the answer
that the same caller gets for an id that never was, byte for byte, and must be counted on the trail under its true
reason.
"""

import contextlib
from collections.abc import AsyncGenerator
from functools import partial
from typing import NamedTuple

import pytest
from tests.binding.installation import ELSEWHERE, TENANT, Installation, Who
from tests.binding.table import ABSENT, METHODS, MODES, ROWS, TOKEN_REFUSED, Row, differing, verdict
from tests.binding.wire import Outcome

from tasktrail.events.entry import Entry
from tasktrail.events.facts import AccessDenied
from tasktrail.events.subjects import kind_of
from tasktrail.mcp.callers import digest
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNKNOWN = "a" * 32


class Met(NamedTuple):
    """One cell: what was asked and what came of it."""

    mode: str
    method: str
    task_id: str
    outcome: Outcome


class Scene(NamedTuple):
    """Who made the tasks, which they are by binding mode, what the caller presents, and how often each was refused."""

    creator: Who
    tasks: dict[str, str]
    token: str | None
    refused: int


def creating(place: Installation, name: str) -> Who:
    """The creator of a row's tasks."""
    creator = place.creator()
    return creator.but(client_id=None) if name == "another sub, neither with a client" else creator


def presented(place: Installation, name: str, creator: Who, token: str) -> str | None:
    """What the caller of a row presents, `token` being what the creator presented."""
    others: dict[str, Who] = {
        "the creator with a new token": creator,
        "a new token after a revoked one": creator,
        "another iss": creator.but(issuer=place.other_issuer),
        "another sub": creator.but(sub="eve"),
        "another sub, neither with a client": creator.but(sub="eve"),
        "another client": creator.but(client_id="portal"),
        "no client": creator.but(client_id=None),
        "sub and client swapped": creator.but(sub=str(creator.client_id), client_id=creator.sub),
    }
    if name in others:
        return others[name].token()
    if name == "an expired token":
        return creator.token(ttl_s=-600)
    return None if name == "anonymous" else token


@contextlib.asynccontextmanager
async def arranged(place: Installation, name: str) -> AsyncGenerator[Scene]:
    """The tasks of a row, made by their creator, and afterwards what the row says has happened since."""
    creator = creating(place, name)
    token = creator.token()
    prefix = "brief_" if name == "an expired handle" else ""
    tasks: dict[str, str] = {}
    for mode in MODES:
        made = await place.wire.create(token, f"{prefix}{mode}")
        assert made.allowed, (mode, made)
        tasks[mode] = made.task_id
    refused = 1 if prefix else 0  # waiting for the end of a handle ends with a refusal
    scene = Scene(creator, tasks, presented(place, name, creator, token), refused)
    async with contextlib.AsyncExitStack() as stack:
        if name == "another tenant":
            await stack.enter_async_context(place.moved(ELSEWHERE))
        elif name == "an expired handle":
            for task_id in tasks.values():
                await until(partial(_is_closed, place, token, task_id))
        else:
            await _revoked(place, name, scene, token)
        yield scene


async def _revoked(place: Installation, name: str, scene: Scene, token: str) -> None:
    """What an operator took back."""
    iss, sub, client_id = place.issuer.url, scene.creator.sub, str(scene.creator.client_id)
    if name == "a revoked principal":
        await place.revoke("principal", tenant=TENANT, iss=iss, sub=sub)
    elif name == "a revoked client":
        await place.revoke("client", tenant=TENANT, iss=iss, client_id=client_id)
    elif name in {"a revoked token", "a new token after a revoked one"}:
        await place.revoke("token", tenant=TENANT, token=token)
    elif name == "a revoked handle":
        for task_id in scene.tasks.values():
            await place.revoke("handle", task=place.trail.ref(task_id))


async def _is_closed(place: Installation, token: str, task_id: str) -> bool:
    return not (await place.wire.get(token, task_id)).allowed


@pytest.mark.requirement("A1")
async def test_every_follow_up_is_a_cell_or_is_left_out_for_a_reason(place: Installation) -> None:
    """Table: `table.ABSENT`."""
    listed = await place.wire.listed(place.creator().token())
    asked = {*place.wire.ways, *([] if listed is None else ["tasks/list"])}
    absent = ABSENT[place.wire.kind]
    assert asked | absent.keys() == METHODS
    assert not asked & absent.keys()


@pytest.mark.requirement("A1", "A4", "A6", "A9")
@pytest.mark.parametrize("name", ROWS)
async def test_each_kind_of_caller_opens_exactly_what_the_table_says(place: Installation, name: str) -> None:
    """Table: `table.py`. Each answer to a caller that is turned away is that of an id that never was."""
    row, ways = ROWS[name], place.wire.ways
    await place.wire.reconnect()
    async with arranged(place, name) as scene:
        listed = await place.wire.listed(scene.token)
        told_of = {mode: task_id in (listed or ()) for mode, task_id in scene.tasks.items()}
        assert listed is None or told_of == {mode: verdict(row, mode) for mode in MODES}
        unknown = {method: await ask(scene.token, UNKNOWN) for method, ask in ways.items()}
        met = [
            Met(mode, method, scene.tasks[mode], await ask(scene.token, scene.tasks[mode]))
            for mode in MODES
            for method, ask in ways.items()
        ]
        wrong_allows = [cell for cell in met if cell.outcome.allowed and not verdict(row, cell.mode)]
        wrong_denies = [cell for cell in met if not cell.outcome.allowed and verdict(row, cell.mode)]
        assert (wrong_allows, wrong_denies) == ([], [])
        unlike = [cell for cell in met if not verdict(row, cell.mode) and cell.outcome != unknown[cell.method]]
        assert unlike == [], unknown
        await _creates_for_itself(place, row, scene)
        await _is_on_the_trail(place, row, scene)


async def _creates_for_itself(place: Installation, row: Row, scene: Scene) -> None:
    """A caller that may hold tasks gets one of its own, which is not the creator's either."""
    own = await place.wire.create(scene.token, "exact")
    assert own.allowed is row.creates, own
    if row.creates and row.differs and row.differs != ("tenant",):
        assert (await place.wire.get(scene.token, own.task_id)).allowed
        assert not (await place.wire.get(scene.creator.token(), own.task_id)).allowed


async def _is_reported(place: Installation, token: str) -> None:
    """The MCP server's own check turned the token away and read no handle: each request is counted by its method."""
    wanted = dict.fromkeys(place.wire.ways, len(MODES) + 1) | {"tools/call": 1}
    if "tasks/list" not in ABSENT[place.wire.kind]:
        wanted["tasks/list"] = 1

    async def counted() -> bool:
        counts = dict.fromkeys(wanted, 0)
        for subject, entry in await place.trail.all():
            credential = entry.authority.credential
            if kind_of(subject) == "denied" and credential and credential.token_hash == digest(token):
                for event in _denials(entry):
                    assert set(event.reasons) == {"credential-refused-by-mcp-server"}
                    counts[event.method] += event.count
        return counts == wanted

    await until(counted)


async def told(place: Installation, scene: Scene) -> dict[str, int]:
    """How many denials of each mode's task are on the trail."""
    counts: dict[str, int] = dict.fromkeys(MODES, 0)
    for mode, task_id in scene.tasks.items():
        ref = place.trail.ref(task_id)
        for entry in await place.trail.denied(ref):
            counts[mode] += sum(event.refs[ref] for event in _denials(entry))
    return counts


def _denials(entry: Entry) -> list[AccessDenied]:
    return [event for event in entry.events if isinstance(event, AccessDenied)]


async def _is_on_the_trail(place: Installation, row: Row, scene: Scene) -> None:
    """Every denial is counted, by its method, under its true reason, with the comparison that was made."""
    if not place.sees_refused_tokens and row.reason == TOKEN_REFUSED:
        await _is_reported(place, str(scene.token))
        return
    wanted = {mode: 0 if verdict(row, mode) else scene.refused + len(place.wire.ways) for mode in MODES}

    async def counted() -> bool:
        return await told(place, scene) == wanted

    await until(counted)
    for mode in MODES:
        ref = place.trail.ref(scene.tasks[mode])
        found = [] if verdict(row, mode) else await place.trail.denied(ref)
        assert verdict(row, mode) or {event.method for entry in found for event in _denials(entry)} >= set(
            place.wire.ways
        )
        for entry in found:
            assert entry.tenant == TENANT, "a denial is shown to whose task it is"
            assert all(row.reason in event.reasons for event in _denials(entry)), (row.reason, entry.events)
            compared = entry.authority.binding
            assert row.reason == TOKEN_REFUSED or compared is None or compared.differs == differing(row, mode), mode
