"""A service that takes one issuer's tokens, and a connected MCP server that believes anything."""

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings

from tasktrail.mcp.extension import Tasks
from tasktrail.testing.issuer import LocalIssuer

from .place import Place, reading, settings
from .serving import listening, served, url_of
from .workshop import SUPPORT, Workshop

CONFIGURED = """
[[issuers]]
url = "{issuer.url}"
tenant = "acme"
audience = ["{url}"]
jwks_url = "{issuer.jwks_url}"
introspection_url = "{issuer.introspection_url}"
introspection_client_id = "{issuer.client_id}"
introspection_secret_file = "{secret}"
"""


class Credulous:
    """A verifier that takes any token, and believes it was root's: the MCP server may be wrong, or lie."""

    async def verify_token(self, token: str) -> AccessToken:
        """Root."""
        claims = {"iss": "https://evil.example", "act": {"sub": "nobody"}}
        return AccessToken(token=token, client_id="console", scopes=[], subject="root", claims=claims)


@contextlib.asynccontextmanager
async def installed(data: Path, *, forward: bool) -> AsyncGenerator[Place]:
    """A service that takes one issuer's tokens, and a connected MCP server that believes anything."""
    async with contextlib.AsyncExitStack() as stack:
        issuers = stack.enter_context(LocalIssuer()), stack.enter_context(LocalIssuer())
        sock = stack.enter_context(listening())
        place = Place("connected", data / "data", url_of(sock), Workshop(), issuers)
        file = data / "tasktrail.toml"
        secret = issuers[0].secret_file(data)
        file.write_text(CONFIGURED.format(issuer=issuers[0], url=place.url, secret=secret), encoding="utf-8")
        stack.enter_context(settings({"config": str(file)}))
        await place.start_service()
        stack.push_async_callback(place.stop_service)
        auth = AuthSettings(issuer_url=issuers[0].url, resource_server_url=place.url, validate_token_resource=False)  # type: ignore[arg-type] # pydantic takes text
        tasks = Tasks.connect(place.data / "adapter.json", tools=SUPPORT, forward_tokens=forward)
        mcp = place.workshop.server(tasks, auth=auth, token_verifier=Credulous())
        await stack.enter_async_context(served(mcp, sock))
        place.trail = await stack.enter_async_context(reading(place.data))
        yield place
