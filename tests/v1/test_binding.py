"""The auth-binding matrix on the 2025-11-25 wire: the same table, the same callers, that wire's methods.

What is promised is in `tests/binding/table.py`. A cell that turns a caller away is held against the answer that the
same caller gets for an id that never was, byte for byte, and must be counted on the trail under its true reason.
"""

from collections.abc import Sequence

import pytest
from tests.binding.table import MODES, ROWS, TOKEN_REFUSED, Row, differing, verdict
from tests.binding.test_matrix import UNKNOWN, Scene, arranged
from tests.v1.place import Place
from tests.v1.session_wire import METHODS

from tasktrail.events.facts import AccessDenied
from tasktrail.events.subjects import kind_of
from tasktrail.mcp.credentials import digest
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.requirement("A1", "A4", "A6", "A9", "L3")
@pytest.mark.parametrize("name", ROWS)
async def test_each_kind_of_caller_opens_exactly_what_the_table_says(place: Place, name: str) -> None:
    """Table: `tests/binding/table.py`. `tasks/list` tells exactly what `tasks/get` opens."""
    row = ROWS[name]
    await place.wire.reconnect()
    async with arranged(place, name) as scene:
        listed = await place.wire.listed(scene.token)
        for mode, task_id in scene.tasks.items():
            assert (task_id in listed) is verdict(row, mode), mode
        unknown = {method: await place.wire.of(scene.token, method, UNKNOWN) for method in METHODS}
        assert not any(one.allowed for one in unknown.values())
        met = [
            (mode, method, await place.wire.of(scene.token, method, scene.tasks[mode]))
            for mode in MODES
            for method in METHODS
        ]
        wrong = [cell for cell in met if cell[2].allowed is not verdict(row, cell[0])]
        assert wrong == []
        telling = [cell for cell in met if not verdict(row, cell[0]) and cell[2] != unknown[cell[1]]]
        assert telling == [], unknown
        await _creates_for_itself(place, row, scene)
        await _is_on_the_trail(place, row, scene)


async def _creates_for_itself(place: Place, row: Row, scene: Scene) -> None:
    """A caller that may hold tasks gets one of its own, which is not the creator's either."""
    own = await place.wire.create(scene.token, "exact")
    assert own.allowed is row.creates, own
    if row.creates and row.differs and row.differs != ("tenant",):
        listed = own.task_id in await place.wire.listed(scene.token)
        assert listed is (scene.token is not None), "nobody has a list"
        assert own.task_id not in await place.wire.listed(scene.creator.token())
        assert not (await place.wire.get(scene.creator.token(), own.task_id)).allowed


def _events(entries: Sequence[object]) -> list[AccessDenied]:
    return [event for entry in entries for event in getattr(entry, "events", ()) if isinstance(event, AccessDenied)]


async def _is_on_the_trail(place: Place, row: Row, scene: Scene) -> None:
    """Every denial is counted, by its method, under its true reason, with the comparison that was made.

    Apart from those of status notices: the session that made a task is told no more once its credential is worth none.
    """
    if not place.sees_refused_tokens and row.reason == TOKEN_REFUSED:
        await _is_reported(place, str(scene.token))
        return
    wanted = {mode: 0 if verdict(row, mode) else scene.refused + len(METHODS) for mode in MODES}

    async def told() -> dict[str, int]:
        counts = dict.fromkeys(MODES, 0)
        for mode, task_id in scene.tasks.items():
            ref = place.trail.ref(task_id)
            denials = _events(await place.trail.denied(ref))
            counts[mode] = sum(event.refs[ref] for event in denials if event.method in METHODS)
        return counts

    async def counted() -> bool:
        return await told() == wanted

    await until(counted)
    for mode in MODES:
        found = [] if verdict(row, mode) else await place.trail.denied(place.trail.ref(scene.tasks[mode]))
        assert verdict(row, mode) or {event.method for event in _events(found)} >= set(METHODS)
        assert all(row.reason in event.reasons for event in _events(found)), row.reason
        for entry in found:
            compared = entry.authority.binding
            assert row.reason == TOKEN_REFUSED or compared is None or compared.differs == differing(row, mode), mode


async def _is_reported(place: Place, token: str) -> None:
    """The MCP server's own check turned the token away before there was a session, each time; that is on the trail."""

    async def reported() -> bool:
        reasons: set[str] = set()
        for subject, entry in await place.trail.all():
            credential = entry.authority.credential
            if kind_of(subject) == "denied" and credential and credential.token_hash == digest(token):
                assert entry.authority.request is not None
                assert entry.authority.request.wire == "mcp/2025-11-25"
                reasons |= {reason for event in _events([entry]) for reason in event.reasons}
        return reasons == {"credential-refused-by-mcp-server"}

    await until(reported)


@pytest.mark.requirement("A4")
@pytest.mark.parametrize("task_id", ["", "A" * 32, "../" * 9, "\x00", "x" * 9_000, 7, None, ["a"]])
async def test_a_malformed_id_gets_the_answer_of_one_that_never_was(place: Place, task_id: object) -> None:
    """A4. What is no text at all does not fit the SDK's own shapes, and gets the same code."""
    token = place.creator().token()
    for method in METHODS:
        unknown = await place.wire.of(token, method, UNKNOWN)
        outcome, answer = await place.wire.asked(token, method, {"taskId": task_id})
        assert answer["error"]["code"] == -32602
        assert not isinstance(task_id, str) or outcome == unknown


@pytest.mark.requirement("L4")
async def test_a_session_of_an_earlier_revision_has_no_tasks(place: Place) -> None:
    """`tasks/*` did not exist before 2025-11-25: -32601, on the trail; a call's `task` means nothing then."""
    token = place.creator().token()
    made = await place.wire.create(token, "exact")
    place.wire.extra_headers = {"MCP-Protocol-Version": "2025-06-18"}
    try:
        for method in (*METHODS, "tasks/list"):
            _, answer = await place.wire.asked(token, method, {"taskId": made.task_id})
            assert answer["error"]["code"] == -32601, method
        _, answer = await place.wire.asked(token, "tools/call", {"name": "greet", "task": {}})
        assert answer["result"]["content"][0]["text"] == "greet at once"
    finally:
        place.wire.extra_headers = {}
