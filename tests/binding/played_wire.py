"""An MCP server in any language, played: what its callers ask of it, and how it tells tasktrail of that.

It forwards its callers' tokens, or verifies them and asserts who called; it stops work that is cancelled, as it hears
of it; it shows a subscription's task again and again. How a command travels is for `HttpWire` and `NatsWire` to say.

    async with played("forwarded", tmp_path, wire) as place:
        made = await place.wire.create(ana.token(), "exact")
"""

import abc
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import msgspec
from tests.binding.installation import AUDIENCE, Identity, Installation, configuration
from tests.binding.mcp_wire import McpWire
from tests.binding.wire import Asking, Outcome
from tests.mcp.place import reading

from tasktrail.mcp.callers import digest, method_of, vouched_by_sdk
from tasktrail.mcp.verifier import Checked, Issuer, JwtVerifier, checking
from tasktrail.services.messages import HANDLE_MAX
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

SERVER = "workshop"
WITHIN_S = 30.0
_serial = itertools.count(1)

Json = dict[str, Any]


def key() -> str:
    """A command's id that was never used."""
    return f"matrix-{next(_serial)}"


class PlayedWire(abc.ABC):
    """Callers of such a server. `verifier`: what it checks tokens with; without, it forwards them."""

    kind: str

    def __init__(self, verifier: JwtVerifier | None, revision: str = "2026-07-28") -> None:
        self._verifier, self._revision = verifier, revision

    @abc.abstractmethod
    async def say(self, action: str, said: Json) -> tuple[Outcome, Json]:
        """One command under an id of its own: what it came to, and what was answered, `reason` of a refusal too."""

    @abc.abstractmethod
    async def reconnect(self) -> None:
        """Leave all connections and take new ones."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Stop working, and close the connections."""

    @property
    def ways(self) -> Mapping[str, Asking]:
        """The follow-ups of this wire."""
        return {
            "tasks/get": self.get,
            "tasks/update": self.update,
            "subscriptions/listen": self.subscribe,
            "tasks/cancel": self.cancel,
        }

    async def _ask(self, token: str | None, action: str, method: str, **said: object) -> tuple[Outcome, Json]:
        """What a caller asks through the server, unless the server itself turns it away."""
        caller = await self._caller(token)
        call = {
            "method": method,
            "wire": f"mcp/{self._revision}",
            "protocol_version": self._revision,
            "rpc_id": "7",
        }
        if caller.get("credential", {}).get("verification", "ok") != "ok":
            reason = "credential-refused-by-mcp-server"
            await self.say("refusal", {"caller": caller, "call": call, "code": -32001, "reason": reason})
            return Outcome(allowed=False, status=HTTPStatus.UNAUTHORIZED, raw=b"refused by the server itself"), {}
        return await self.say(action, {"caller": caller, "call": call, **said})

    async def _caller(self, token: str | None) -> Json:
        """Who calls, as tasktrail is told."""
        if token is None:
            return {}
        if self._verifier is None:
            return {"token": token}
        checked = Checked()
        asking = checking.set(checked)
        found = await self._verifier.verify_token(token)
        checking.reset(asking)
        if found is not None:
            return cast("Json", msgspec.to_builtins(vouched_by_sdk(found)))
        verification = (checked.verification or "not_checked") and str(checked.verification)
        facts = {"method": str(method_of(token)), "verification": verification, "token_hash": digest(token)}
        return {"credential": facts}

    async def create(self, token: str | None, tool: str) -> Outcome:
        """A tool that becomes a task."""
        outcome, made = await self._ask(token, "create", "tools/call", tool=tool, task_support="optional")
        return msgspec.structs.replace(outcome, task_id=str(made["task_id"])) if outcome.allowed else outcome

    async def get(self, token: str | None, task_id: str) -> Outcome:
        """tasks/get."""
        return (await self._ask(token, "get", "tasks/get", task_id=task_id[:HANDLE_MAX]))[0]

    async def listed(self, token: str | None) -> list[str]:
        """The ids of all that tasks/list tells."""
        found: list[str] = []
        cursor = ""
        while True:
            outcome, page = await self._ask(token, "list", "tasks/list", cursor=cursor)
            found += [task["task_id"] for task in page.get("tasks", ())]
            cursor = page.get("next_cursor", "") if outcome.allowed else ""
            if not cursor:
                return found

    async def update(self, token: str | None, task_id: str) -> Outcome:
        """tasks/update with an answer under a key that was never asked."""
        answers = {"never-asked": {"action": "decline"}}
        said = {"task_id": task_id[:HANDLE_MAX], "answers": answers}
        return (await self._ask(token, "update", "tasks/update", **said))[0]

    async def cancel(self, token: str | None, task_id: str) -> Outcome:
        """tasks/cancel."""
        return (await self._ask(token, "cancel", "tasks/cancel", task_id=task_id[:HANDLE_MAX]))[0]

    async def subscribe(self, token: str | None, task_id: str) -> Outcome:
        """A subscription, given up as soon as it is granted."""
        outcome = await self._watch(token, task_id)
        if outcome.allowed:
            await self._unwatch(token, task_id, "client")
        return outcome

    async def listen_while(self, token: str | None, task_id: str, meanwhile: Callable[[], Awaitable[None]]) -> Outcome:
        """A subscription: the task, shown again and again, until it opens no more for this caller."""
        outcome = await self._watch(token, task_id)
        if not outcome.allowed:
            return outcome
        await meanwhile()

        async def over() -> bool:
            shown, said = await self._ask(token, "get", "notifications/tasks", task_id=task_id)
            return said.get("reason") == "not_found" or shown.status == HTTPStatus.UNAUTHORIZED

        await until(over, within_s=WITHIN_S)
        await self._unwatch(token, task_id, "denied")
        return outcome

    async def _watch(self, token: str | None, task_id: str) -> Outcome:
        ids = [task_id[:HANDLE_MAX]]
        outcome, granted = await self._ask(token, "watch", "subscriptions/listen", task_ids=ids)
        return msgspec.structs.replace(outcome, allowed=bool(granted.get("tasks")))

    async def _unwatch(self, token: str | None, task_id: str, reason: str) -> None:
        said: Json = {"task_id": task_id, "pushes": 1, "reason": reason}
        await self._ask(token, "unwatch", "subscriptions/listen", **said)

    async def heed(self, task_ref: str, move: Json) -> None:
        """Stop the work of a task that is to stop."""
        if move.get("cancel_requested") and move.get("live", True):
            await self.say("stop", {"task_ref": task_ref})


@contextlib.asynccontextmanager
async def played(
    identity: Identity,
    directory: Path,
    wire_of: Callable[[UpProcess, JwtVerifier | None], Any],
    of_server: str = "",
) -> AsyncGenerator[Installation]:
    """Start everything; `identity` is how callers' identity reaches tasktrail, `of_server` more about the server.

    `wire_of` makes the wire, which is closed at the end.
    """
    async with contextlib.AsyncExitStack() as stack:
        issuers = (stack.enter_context(LocalIssuer()), stack.enter_context(LocalIssuer()))
        config = directory / "tasktrail.toml"
        said, named = configuration(issuers, identity), f'name = "{SERVER}"'
        config.write_text(said.replace(named, f"{named}\n{of_server}"), encoding="utf-8")
        up = stack.enter_context(UpProcess(directory / "data", environment={"TASKTRAIL_CONFIG": str(config)}))
        verifier: JwtVerifier | None = None
        if identity == "asserted":
            verifier = JwtVerifier([Issuer(one.url, one.jwks_url, AUDIENCE) for one in issuers], skew_s=0)
        wire = wire_of(up, verifier)
        stack.push_async_callback(wire.close)
        place = Installation(identity, up, cast("McpWire", wire), issuers, config)
        place.trail = await stack.enter_async_context(reading(up.data))
        yield place
