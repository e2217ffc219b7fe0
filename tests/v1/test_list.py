"""`tasks/list` on the 2025-11-25 wire: one's own tasks, page by page.

Source: MCP 2025-11-25, tasks (Task Listing), pagination. Features L3, A1, A3, A4.
"""

import pytest
from tests.v1.place import Place
from tests.v1.running import Client, Json, Refused

from tasktrail.events.facts import TaskPolled
from tasktrail.services.messages import LISTED_MAX
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def everything(client: Client) -> list[Json]:
    """All pages of a client's list."""
    page: Json = await client.do("list")
    found: list[Json] = list(page["tasks"])
    while "nextCursor" in page:
        page = await client.do("list", cursor=page["nextCursor"])
        found += page["tasks"]
    return found


@pytest.mark.requirement("L3", "A1")
async def test_everybody_lists_their_own_tasks_page_by_page_the_newest_first(place: Place) -> None:
    """MUST: what `tasks/get` opens is listed, at once; nextCursor while there is more; payloads are not in it.

    Tasks that are bound to a tenant only, of other tests, are everybody's there; they are older.
    """
    creator = place.creator()
    ana, eve = await place.client(creator), await place.client(place.creator())
    older = {one["taskId"] for one in await everything(ana)}
    tasks = [await ana.call("complains") for _ in range(LISTED_MAX + 2)]
    for task in tasks:
        await ana.status(task, "failed")
    other = await eve.call("complains")
    first = await ana.do("list")
    assert len(first["tasks"]) == LISTED_MAX
    assert {one["status"] for one in first["tasks"]} == {"failed"}
    assert set(first["tasks"][0]) == {"taskId", "status", "createdAt", "lastUpdatedAt", "ttl", "pollInterval"}
    own = [one["taskId"] for one in await everything(ana) if one["taskId"] not in older]
    assert own == [one["taskId"] for one in reversed(tasks)]
    assert [one["taskId"] for one in await everything(eve) if one["taskId"] not in older] == [other["taskId"]]
    theirs = (await eve.do("list", cursor=first["nextCursor"]))["tasks"]
    assert {one["taskId"] for one in theirs} <= older, "somebody else's cursor opens nothing of theirs"
    again = await place.client(creator)
    assert await again.do("list") == first


@pytest.mark.requirement("L3", "A1")
async def test_a_server_without_tokens_lists_nothing(place: Place) -> None:
    """Task Listing: who cannot be told apart gets no list, -32601; an id opens its task as ever."""
    nobody, other = await place.client(None, "open"), await place.client(None, "open")
    task = await nobody.call("complains")
    for client in (nobody, other):
        with pytest.raises(Refused, match="send a bearer token") as refused:
            await client.do("list")
        assert refused.value.code == -32601
    await nobody.status(task, "failed")


@pytest.mark.requirement("L3")
@pytest.mark.parametrize("cursor", ["x", "bm9uc2Vuc2U", "WzEsIm5vIHJlZiJd", "é", "c" * 5_000])
async def test_a_cursor_that_was_never_given_is_refused(place: Place, cursor: str) -> None:
    """Protocol Errors: -32602, with the same words whatever is wrong with it."""
    ana = await place.client(place.creator())
    with pytest.raises(Refused, match="this cursor is none that was given here") as refused:
        await ana.do("list", cursor=cursor)
    assert refused.value.code == -32602


@pytest.mark.requirement("A3")
async def test_each_listed_task_records_that_it_was_looked_at(place: Place) -> None:
    """A3: against the authorisation that created it, with the caller's own."""
    creator = place.creator()
    ana = await place.client(creator)
    task = await ana.call("complains")
    await ana.do("list")

    async def recorded() -> bool:
        accesses = await place.trail.of(task["taskId"], "access")
        created = (await place.trail.of(task["taskId"]))[0]
        return any(
            entry.authority.created_by == created.id
            for entry in accesses
            for event in entry.events
            if isinstance(event, TaskPolled) and event.method == "tasks/list"
        )

    await until(recorded)
