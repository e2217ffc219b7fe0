"""`kill -9` of the service, and of its broker alone, again and again in the middle of traffic, on the same data.

Issue "main job": every acknowledged command present exactly once, both projections equal to a rebuild from the trail.
Design section 1: durable before visible; a repeat of a command id returns the first outcome; a restart records a gap.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.aio.client import Client

from tasktrail.events.facts import AccessDenied, GapFound, ResultDisclosed, TaskPolled
from tasktrail.events.subjects import entry_id
from tasktrail.events.task import outcome_of
from tasktrail.testing.feeding import Feeder, Refused
from tasktrail.testing.rebuild import Book, audit_differences, current_differences, forged
from tasktrail.testing.service import UpProcess

from .stories import Acknowledged, Teller, outcome

KILLS = 20
COMMANDS = 2_000
SAMPLE = 200
SETTLED_WITHIN_S = 30.0

ENVIRONMENT = {"TASKTRAIL_CANCEL_GRACE_MS": "600000"}
"""No timer ends a cancelled task while the service is down: the stories say what each command comes to."""


class Campaign:
    """One service, what is fed to it, and what its trail says. Each method gives what is wrong: nothing, at best."""

    def __init__(self, up: UpProcess, teller: Teller) -> None:
        self.up, self.teller = up, teller
        self.book = Book()
        self._checked = 0

    async def run(self, kill: Callable[[], None]) -> list[str]:
        """`KILLS` rounds of `COMMANDS` with one kill in each, then everything looked at once more."""
        for number in range(KILLS):
            await self._round(kill)
            found = [*self.teller.wrong, *await self._read()]
            if found:
                return [f"in round {number}", *found]
        found = [*await self._repeated(), *await self._projected()]
        return found + await asyncio.to_thread(forged, self.book, self.up.data, SAMPLE)

    async def _round(self, kill: Callable[[], None]) -> None:
        start = self.teller.commands
        telling = asyncio.create_task(self.teller.tell(start + COMMANDS))
        await self.teller.reach(start + self.teller.random.randint(COMMANDS // 10, COMMANDS - COMMANDS // 10))
        await asyncio.to_thread(kill)
        await telling

    async def _read(self) -> list[str]:
        """Read on, and look up what was acknowledged since."""
        nc = await self.up.admin().connect("campaign")
        try:
            await self.book.read(nc)
        finally:
            await nc.close()
        fresh = self.teller.acknowledged[self._checked :]
        self._checked = len(self.teller.acknowledged)
        return self.book.faults + [fault for one in fresh if (fault := self._missing(one))]

    def _missing(self, one: Acknowledged) -> str:
        """What is wrong with the entry of an acknowledged command."""
        found = self.book.entries.get(entry_id(one.ref, one.command_id))
        if one.outcome == "unchanged":
            return f"{one}: it changed nothing and is on the trail" if found else ""
        if found is None:
            return f"{one}: acknowledged, and not on the trail"
        told = outcome_of(found[1].events)
        same = found[1].task_ref == one.ref and told == (one.outcome, one.reason)
        return "" if same else f"{one}: the trail says {told}"

    async def _repeated(self) -> list[str]:
        """Send the last commands again: each is answered as it was, and none makes an entry."""
        before = len(self.book.messages)
        found = [
            f"{one}: sent again it is {told}"
            for one in self.teller.acknowledged[-SAMPLE:]
            # Nothing of an unchanged one is on the trail: sent again it is decided again.
            if one.outcome != "unchanged" and (told := await self._again(one))
        ]
        found += await self._read()
        made = (entry for seq, entry in self.book.entries.values() if seq > before and entry.command)
        return found + [f"sent again, {entry.command} made an entry: {entry.id}" for entry in made]

    async def _again(self, one: Acknowledged) -> tuple[str, str] | None:
        """What a command sent again is told, if that is not what it was told before. Callers are told errors only."""
        try:
            view = await self.teller.feeder.settled(one.action, one.said)
        except Refused as refused:
            told = ("refused", refused.reason)
        else:
            told = outcome(view) if "seq" in view and one.action != "create" else (one.outcome, one.reason)
        return None if told == (one.outcome, one.reason) else told

    async def _projected(self) -> list[str]:
        """Every task has the status acknowledged, also for a poll; the bucket is what the trail folds to."""
        lives = self.teller.lives
        found = [
            f"life {life.number}: {life.status} was acknowledged, the trail says {state.task.status}"
            for life in lives
            if (state := self.book.states[life.ref]).task.status != life.status
        ]
        await asyncio.gather(*(life.get(life.status) for life in self.teller.random.sample(lives, SAMPLE)))
        nc = await self.up.admin().connect("campaign")
        try:
            found += await _settled_bucket(nc, self.book)
        finally:
            await nc.close()
        return found + self.teller.wrong

    async def audited(self, scratch: Path) -> list[str]:
        """Stop the service when its store has everything; the store is what the trail gives, row for row."""
        await asyncio.to_thread(self.up.wait_until_level)
        nc = await self.up.admin().connect("campaign")
        try:
            await self.book.read(nc)
        finally:
            await nc.close()
        code = await asyncio.to_thread(self.up.stop)
        found = await asyncio.to_thread(audit_differences, self.up.data / "audit.duckdb", self.book, scratch)
        return found + ([f"it stopped with exit code {code}"] if code else [])

    def counted(self) -> Counter[str]:
        """How many looks and denials the trail counts, and gaps."""
        counts: Counter[str] = Counter()
        for _, entry in self.book.entries.values():
            for event in entry.events:
                match event:
                    case TaskPolled() | ResultDisclosed():
                        counts["looks"] += event.count
                    case AccessDenied():
                        counts["denials"] += event.count
                    case GapFound():
                        counts["gaps"] += 1
                    case _:
                        pass
        return counts


async def _settled_bucket(nc: Client, book: Book) -> list[str]:
    """Differences of the bucket, once the projector has had time to end its work."""
    deadline = asyncio.get_running_loop().time() + SETTLED_WITHIN_S
    while True:
        await book.read(nc)
        found = await current_differences(nc, book)
        if not found or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(0.1)


async def campaign(up: UpProcess, kill: Callable[[], None], seed: int, scratch: Path) -> tuple[Campaign, list[str]]:
    """A whole campaign: itself, and what was found wrong."""
    feeder = await Feeder.connect(up.adapter(), "campaign")
    try:
        this = Campaign(up, Teller(feeder, seed))
        found = await this.run(kill)
    finally:
        await feeder.close()
    return this, found or await this.audited(scratch)


@pytest.mark.requirement("L1", "L5", "T1")
async def test_a_service_killed_in_the_middle_of_commands_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Issue "main job", kill -9 of `up`. Design section 1: a restart after a crash records a gap."""
    with UpProcess(tmp_path / "data", environment=ENVIRONMENT) as up:

        def kill() -> None:
            up.kill()
            up.start()

        this, found = await campaign(up, kill, seed=1, scratch=tmp_path)
        assert not found, "\n".join([*found, up.output()[-4_000:]])
        assert this.counted()["gaps"] == KILLS


@pytest.mark.requirement("L1", "L5", "T1")
async def test_a_service_whose_broker_is_killed_gets_over_it_and_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Issue "main job", kill -9 of the nats-server. The service lives on, so that no look or denial goes uncounted."""
    with UpProcess(tmp_path / "data", environment=ENVIRONMENT) as up:
        this, found = await campaign(up, lambda: _kill_broker(up), seed=2, scratch=tmp_path)
        assert not found, "\n".join([*found, up.output()[-4_000:]])
        counted = this.counted()
        assert counted["gaps"] == 0
        assert (counted["looks"] >= this.teller.looks, counted["denials"] >= this.teller.denials) == (True, True), (
            counted,
            this.teller.looks,
            this.teller.denials,
        )


def _kill_broker(up: UpProcess) -> None:
    up.kill_broker()
