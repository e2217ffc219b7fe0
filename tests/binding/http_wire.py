"""The wire `http/ingest`: an MCP server in any language, which says over plain HTTP what its callers ask. Needs httpx.

The server itself is played here: it forwards its callers' tokens, or verifies them and asserts who called; it stops
work that is cancelled, as it hears of it; it pushes a subscription's task whenever that moved. Nothing else than HTTP
reaches tasktrail, whose address is looked up for each request: a restart moves it.

    async with installed_on_http("forwarded", tmp_path) as place:
        made = await place.wire.create(ana.token(), "exact")
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
from tests.binding.installation import AUDIENCE, Identity, Installation, configuration
from tests.binding.mcp_wire import McpWire, shown
from tests.binding.wire import Outcome
from tests.mcp.place import reading

from tasktrail.mcp.callers import digest, method_of, vouched_by_sdk
from tasktrail.mcp.verifier import Checked, Issuer, JwtVerifier, checking
from tasktrail.services.ending import end
from tasktrail.services.messages import HANDLE_MAX
from tasktrail.services.responder import find
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

TOKEN = "the-token-of-the-workshop"
SERVER = "workshop"
WITHIN_S = 30.0
AGAIN_S = 0.2
_serial = itertools.count(1)

Json = dict[str, Any]


class HttpWire:
    """Callers of such a server. `verifier`: what it checks tokens with; without, it forwards them."""

    def __init__(self, data: Path, verifier: JwtVerifier | None) -> None:
        self._data, self._verifier = data, verifier
        self._http = _connections()
        self._working = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop working, and close the connections."""
        await end(self._working)
        await self._http.aclose()

    async def reconnect(self) -> None:
        """Leave all connections and take new ones."""
        await self._http.aclose()
        self._http = _connections()

    def _url(self, path: str) -> str:
        running = find(self._data)
        return f"{running.url if running else 'http://127.0.0.1:9'}/ingest/v1{path}"

    async def _say(self, path: str, said: Json) -> tuple[Outcome, Json]:
        """One request, under a key of its own: what it came to, and what was answered."""
        headers = {"Idempotency-Key": f'"{next(_serial)}"'}
        try:
            response = await self._http.post(self._url(path), json=said, headers=headers)
        except httpx.TransportError:
            return Outcome(allowed=False, status=0, raw=b""), {}
        raw = shown(response, response.content)
        return Outcome(allowed=response.is_success, status=response.status_code, raw=raw), response.json()

    async def _ask(self, token: str | None, path: str, method: str, **said: object) -> tuple[Outcome, Json]:
        """What a caller asks through the server, unless the server itself turns it away."""
        caller = await self._caller(token)
        call = {"method": method, "wire": "2026-07-28", "protocol_version": "2026-07-28", "rpc_id": "7"}
        if caller.get("credential", {}).get("verification", "ok") != "ok":
            reason = "credential-refused-by-mcp-server"
            await self._say("/refusals", {"caller": caller, "call": call, "code": -32001, "reason": reason})
            return Outcome(allowed=False, status=HTTPStatus.UNAUTHORIZED, raw=b"refused by the server itself"), {}
        return await self._say(path, {"caller": caller, "call": call, **said})

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
        outcome, made = await self._ask(token, "/tasks", "tools/call", tool=tool, task_support="optional")
        return msgspec.structs.replace(outcome, task_id=str(made["task_id"])) if outcome.allowed else outcome

    async def get(self, token: str | None, task_id: str) -> Outcome:
        """tasks/get."""
        return (await self._ask(token, "/tasks/get", "tasks/get", task_id=task_id[:HANDLE_MAX]))[0]

    async def update(self, token: str | None, task_id: str) -> Outcome:
        """tasks/update with an answer under a key that was never asked."""
        answers = {"never-asked": {"action": "decline"}}
        said = {"task_id": task_id[:HANDLE_MAX], "answers": answers}
        return (await self._ask(token, "/tasks/update", "tasks/update", **said))[0]

    async def cancel(self, token: str | None, task_id: str) -> Outcome:
        """tasks/cancel."""
        return (await self._ask(token, "/tasks/cancel", "tasks/cancel", task_id=task_id[:HANDLE_MAX]))[0]

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
            return (await self._pushed(token, task_id)).status in {HTTPStatus.NOT_FOUND, HTTPStatus.UNAUTHORIZED}

        await until(over, within_s=WITHIN_S)
        await self._unwatch(token, task_id, "denied")
        return outcome

    async def _watch(self, token: str | None, task_id: str) -> Outcome:
        ids = [task_id[:HANDLE_MAX]]
        outcome, granted = await self._ask(token, "/tasks/watch", "subscriptions/listen", task_ids=ids)
        return msgspec.structs.replace(outcome, allowed=bool(granted.get("tasks")))

    async def _pushed(self, token: str | None, task_id: str) -> Outcome:
        outcome, _ = await self._ask(token, "/tasks/get", "notifications/tasks", task_id=task_id)
        return outcome

    async def _unwatch(self, token: str | None, task_id: str, reason: str) -> None:
        said: Json = {"task_id": task_id, "pushes": 1, "reason": reason}
        await self._ask(token, "/tasks/unwatch", "subscriptions/listen", **said)

    async def _work(self) -> None:
        """Stop what is cancelled, as the service tells of it; connect again when it is gone."""
        async with _connections() as http:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    async with http.stream("GET", self._url("/moves")) as moves:
                        async for line in moves.aiter_lines():
                            await self._heed(json.loads(line[6:]) if line.startswith("data: ") else {})
                await asyncio.sleep(AGAIN_S)

    async def _heed(self, move: Json) -> None:
        if move.get("cancel_requested") and move.get("live", True):
            await self._say(f"/work/{move['task_ref']}/stop", {})


def _connections() -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {TOKEN}", "Tasktrail-Server": SERVER}
    return httpx.AsyncClient(headers=headers, timeout=WITHIN_S, trust_env=False)


@contextlib.asynccontextmanager
async def installed_on_http(identity: Identity, directory: Path) -> AsyncGenerator[Installation]:
    """Start everything; `identity` is how callers' identity reaches tasktrail."""
    async with contextlib.AsyncExitStack() as stack:
        issuers = (stack.enter_context(LocalIssuer()), stack.enter_context(LocalIssuer()))
        config = directory / "tasktrail.toml"
        said, named = configuration(issuers, identity), f'name = "{SERVER}"'
        config.write_text(said.replace(named, f'{named}\nsha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"'))
        up = stack.enter_context(UpProcess(directory / "data", environment={"TASKTRAIL_CONFIG": str(config)}))
        verifier: JwtVerifier | None = None
        if identity == "asserted":
            verifier = JwtVerifier([Issuer(one.url, one.jwks_url, AUDIENCE) for one in issuers], skew_s=0)
        wire = HttpWire(up.data, verifier)
        stack.push_async_callback(wire.close)
        place = Installation(identity, up, cast("McpWire", wire), issuers, config)
        place.trail = await stack.enter_async_context(reading(up.data))
        yield place
