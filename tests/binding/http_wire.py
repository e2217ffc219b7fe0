"""The wire `http/ingest`: an MCP server in any language, which says over plain HTTP what its callers ask. Needs httpx.

Nothing else than HTTP reaches tasktrail, whose address is looked up for each request: a restart moves it.

    async with installed_on_http("forwarded", tmp_path) as place:
        made = await place.wire.create(ana.token(), "exact")
"""

import asyncio
import contextlib
import hashlib
import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
from tests.binding.installation import Identity, Installation
from tests.binding.mcp_wire import shown
from tests.binding.played_wire import SERVER, WITHIN_S, Json, PlayedWire, key, played
from tests.binding.wire import Outcome

from tasktrail.mcp.verifier import JwtVerifier
from tasktrail.services.ending import end
from tasktrail.services.responder import find

TOKEN = "the-token-of-the-workshop"
AGAIN_S = 0.2
PATHS = {
    "create": "/tasks",
    "refusal": "/refusals",
    **{action: f"/tasks/{action}" for action in ("get", "list", "update", "cancel", "watch", "unwatch")},
}


class HttpWire(PlayedWire):
    """Callers of a server that speaks HTTP."""

    kind = "http/ingest"

    def __init__(self, data: Path, verifier: JwtVerifier | None) -> None:
        super().__init__(verifier)
        self._data = data
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

    async def say(self, action: str, said: Json) -> tuple[Outcome, Json]:
        """One request."""
        body = dict(said)
        path = PATHS.get(action) or f"/work/{body.pop('task_ref')}/{action}"
        try:
            response = await self._http.post(self._url(path), json=body, headers={"Idempotency-Key": f'"{key()}"'})
        except httpx.TransportError:
            return Outcome(allowed=False, status=0, raw=b""), {}
        raw = shown(response, response.content)
        return Outcome(allowed=response.is_success, status=response.status_code, raw=raw), response.json()

    async def _work(self) -> None:
        """Stop what is cancelled, as the service tells of it; connect again when it is gone."""
        async with _connections() as http:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    async with http.stream("GET", self._url("/moves")) as moves:
                        async for line in moves.aiter_lines():
                            move = json.loads(line[6:]) if line.startswith("data: ") else {}
                            await self.heed(move.get("task_ref", ""), move)
                await asyncio.sleep(AGAIN_S)


def _connections() -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {TOKEN}", "Tasktrail-Server": SERVER}
    return httpx.AsyncClient(headers=headers, timeout=WITHIN_S, trust_env=False)


def installed_on_http(identity: Identity, directory: Path) -> AbstractAsyncContextManager[Installation]:
    """Start everything; `identity` is how callers' identity reaches tasktrail."""
    known_by = f'sha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"'
    return played(identity, directory, lambda up, verifier: HttpWire(up.data, verifier), known_by)
