"""How the tools of MCP servers are defined now, and which live tasks were made under another definition.

Guarantees: a live task whose tool is seen to be defined otherwise than at its creation gets one `ToolDriftSeen`, in the
name of the server that showed it; nobody waits for that. A definition is seen when a task of the tool is made, and when
a server says it as it renews its lease. What could not be recorded is, the next time it is seen. A task whose creation
said no definition has nothing to differ from.

    definitions = Definitions(ledger, states)
    definitions.observe(state)          # fed by the projector
    definitions.seen(channel, "report", "9f2c…")
"""

import asyncio
import logging
from typing import NamedTuple

import msgspec
from nats.errors import Error as NatsError

from tasktrail.events import commands
from tasktrail.events.authority import Trigger
from tasktrail.events.errors import TasktrailError
from tasktrail.projections.current import State
from tasktrail.services.access.callers import Channel, server_authority
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.ledger import Ledger
from tasktrail.services.states import States

_log = logging.getLogger(__name__)

_ACTION = "definition"


class _Made(NamedTuple):
    """Under which definition of which tool a live task was made."""

    server: str
    tool: str
    sha256: str


class Definitions:
    """The live tasks of every tool, by the definition they were made under."""

    def __init__(self, ledger: Ledger, states: States) -> None:
        self._ledger, self._states = ledger, states
        self._made: dict[str, _Made] = {}
        self._tasks: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
        self._noting: dict[asyncio.Task[None], frozenset[str]] = {}

    def observe(self, state: State) -> None:
        """A task moved."""
        task, ref = state.task, state.task_ref
        counts = bool(task.live and task.tool_sha256 and not task.drift_sha256)
        made = self._made.get(ref)
        if counts and made is None:
            self._made[ref] = one = _Made(task.server, task.tool, task.tool_sha256)
            of_tool = self._tasks.setdefault((one.server, one.tool), {})
            of_tool.setdefault(one.sha256, {})[ref] = state.tenant
        elif made is not None and not counts:
            self._forget(ref, made)

    def _forget(self, ref: str, made: _Made) -> None:
        del self._made[ref]
        of_tool = self._tasks[made.server, made.tool]
        del of_tool[made.sha256][ref]
        if not of_tool[made.sha256]:
            del of_tool[made.sha256]
        if not of_tool:
            del self._tasks[made.server, made.tool]

    def seen(self, channel: Channel, tool: str, sha256: str) -> None:
        """A server shows that its tool is defined like this now. Returns at once."""
        of_tool = self._tasks.get((channel.server, tool))
        if not sha256 or of_tool is None or of_tool.keys() <= {sha256}:
            return
        busy = frozenset[str]().union(*self._noting.values())
        others = {
            ref: tenant
            for made, tasks in of_tool.items()
            if made != sha256
            for ref, tenant in tasks.items()
            if ref not in busy
        }
        if others:
            noting = asyncio.create_task(self._note(channel, others, tool, sha256))
            self._noting[noting] = frozenset(others)
            noting.add_done_callback(lambda done: self._noting.pop(done, None))

    async def _note(self, channel: Channel, others: dict[str, str], tool: str, sha256: str) -> None:
        _log.warning(
            "tool %s of server %s is defined otherwise than %d live tasks have it", tool, channel.server, len(others)
        )
        for ref, tenant in others.items():
            try:
                await self._drifted(channel, tenant, ref, sha256)
            except (TasktrailError, NatsError, OSError) as error:
                _log.warning("that is not on the trail yet: %s", error)
                return

    async def _drifted(self, channel: Channel, tenant: str, ref: str, sha256: str) -> None:
        state = await self._states.of(tenant, ref)
        if state is None:
            return
        authority = msgspec.structs.replace(
            server_authority(channel, tenant, _ACTION, Trigger.MCP_SERVER),
            created_by=state.task.created_by,
            decision=decision(Rule.SERVER_RUNS_TASK, _ACTION, state.task.binding, channel.server),
        )
        command = commands.SeeDefinition(id=f"{_ACTION}:{sha256}", tool_sha256=sha256)
        done = await self._ledger.submit(tenant, ref, command, authority)
        self.observe(done.state)

    async def stop(self) -> None:
        """Leave what is not recorded yet for the next time."""
        noting = list(self._noting)
        for one in noting:
            one.cancel()
        await asyncio.gather(*noting, return_exceptions=True)
