"""An MCP server forwards its callers' tokens, or its word on them is taken, or not. Source: issue 3, docs/identity.md.

A real issuer, a real MCP server over HTTP, a service whose configuration file names the issuer.
"""

from pathlib import Path

import pytest

from tasktrail.events.authority import Level, Method, Verification
from tasktrail.events.facts import TaskCreated
from tasktrail.events.subjects import kind_of

from .client import Client
from .forwarding import installed
from .place import carrying


@pytest.mark.requirement("A1", "A5", "R4")
async def test_forwarded_tokens_are_verified_by_tasktrail_whatever_the_server_believes(tmp_path: Path) -> None:
    """`verified` for a signed token, `vouched` for an introspected one; each task is its own token's."""
    async with installed(tmp_path, forward=True) as place:
        opaque = place.issuer.issue_opaque("bob", "cli", aud=place.url)
        tokens = {"ana": place.token("ana"), "bob": opaque}
        made = {}
        for who, token in tokens.items():
            async with Client(place.url, token) as client:
                made[who] = (await client.start("echo", text="hello"))["taskId"]
                await client.until(made[who], "completed")
        for who, level, method in (("ana", Level.VERIFIED, Method.JWT), ("bob", Level.VOUCHED, Method.OPAQUE)):
            authority = carrying(await place.trail.of(made[who]), TaskCreated).authority
            assert authority.principal is not None
            assert authority.credential is not None
            assert (authority.principal.iss, authority.principal.sub) == (place.issuer.url, who)
            assert (authority.tenant, authority.principal.level) == ("acme", level)
            assert (authority.credential.method, authority.actors) == (method, ())
        async with Client(place.url, tokens["bob"]) as bob:
            assert (await bob.get(made["ana"])).error["code"] == -32602
        async with Client(place.url, place.other_issuer.issue("ana", "cli", aud=place.url)) as stranger:
            assert (await stranger.get(made["ana"])).error["code"] == -32602
            assert (await stranger.call("echo", text="hello")).error["code"] == -32001
        assert not place.other_issuer.fetches
        said = "".join(repr(one) for one in await place.trail.all())
        assert not [token for token in tokens.values() if token in said]


@pytest.mark.requirement("A5")
async def test_the_word_of_a_server_that_is_not_trusted_is_not_taken(tmp_path: Path) -> None:
    """Once issuers are configured, a server asserts only where `[[servers]]` says so; what it said is claimed."""
    async with installed(tmp_path, forward=False) as place, Client(place.url, place.token("ana")) as ana:
        assert (await ana.call("echo", text="hello")).error["code"] == -32001
        denied = [entry for subject, entry in await place.trail.all() if kind_of(subject) == "denied"]
        assert [sorted(reason for event in one.events for reason in event.reasons) for one in denied] == [  # type: ignore[union-attr] # denials
            ["server-not-trusted-to-assert"]
        ]
        authority = denied[0].authority
        assert authority.principal is not None
        assert authority.credential is not None
        assert (authority.principal.sub, authority.principal.level) == ("root", Level.CLAIMED)
        assert authority.credential.verification is Verification.NOT_TRUSTED
