"""Who approved what a task asked, and how we know: real tokens, from the answer to the timeline. Source: feature A8."""

import time
from pathlib import Path
from typing import Any

import pytest

from tasktrail.projections.audit.timeline import CredentialShown, Step
from tasktrail.services.access.claims import digest
from tasktrail.services.operators import Asker
from tasktrail.services.reading import Reading
from tasktrail.services.wording import remarks

from .answering import accept, asked
from .client import Client
from .forwarding import installed
from .place import Place, opened

pytestmark = pytest.mark.asyncio

RESPONDER = Asker(token_hash="r" * 43, address="203.0.113.5")


async def answered(place: Place, token: str) -> Step:
    """The step in the timeline of a task whose question was answered with this token."""
    async with Client(place.url, token) as client:
        made = await client.start("asks")
        (key,) = await asked(client, made["taskId"])
        await client.update(made["taskId"], {key: accept(age=41)})
        await client.until(made["taskId"], "completed")
    assert place.service is not None
    timeline = await Reading(place.service).timeline(made["taskId"], RESPONDER)
    assert timeline is not None
    (step,) = [one for one in timeline.steps if one.type == "InputResponded"]
    return step


def shown(step: Step) -> CredentialShown:
    """The credential, without which the answer would not have been taken."""
    assert step.credential is not None
    return step.credential


@pytest.mark.requirement("A8")
@pytest.mark.parametrize(
    ("forward", "level", "words"),
    [(True, "verified", "verified by tasktrail"), (False, "asserted", "asserted by the MCP server")],
)
async def test_a_second_factor_is_shown_with_whose_word_it_is(
    tmp_path: Path, *, forward: bool, level: str, words: str
) -> None:
    """`acr`, `amr` and `auth_time` of RFC 9068: told by a token we checked, or by a server that says it did."""
    at = int(time.time()) - 60
    claims: dict[str, Any] = {"acr": "urn:example:strong", "amr": ["pwd", "otp"], "auth_time": at}
    async with installed(tmp_path, forward=True) if forward else opened("connected", tmp_path) as place:
        token = place.issuer.issue("ana", "cli", aud=place.url, scope="tasks", **claims)
        step = await answered(place, token)
        plain = await answered(place, place.token("ana"))
    credential = shown(step)
    assert (credential.acr, credential.amr, credential.level) == ("urn:example:strong", ("pwd", "otp"), level)
    assert credential.auth_time == time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at))
    assert credential.token_hash == digest(token)
    [(_, said)] = remarks(step)
    assert said.startswith(f"answered by ana ({words}), authenticated by pwd, otp (acr urn:example:strong) at ")
    assert (shown(plain).acr, shown(plain).amr, shown(plain).auth_time) == (None, (), None)
    assert list(remarks(plain)) == [("", f"answered by ana ({words}), nothing says how a person was authenticated")]


@pytest.mark.requirement("A8")
async def test_what_a_credulous_server_says_of_a_forwarded_token_is_not_shown(tmp_path: Path) -> None:
    """The server believes that it was root; the token says that it was ana, by a password alone."""
    async with installed(tmp_path, forward=True) as place:
        step = await answered(place, place.issuer.issue("ana", "cli", aud=place.url, scope="tasks", amr=["pwd"]))
    assert step.who is not None
    assert (step.who.sub, step.who.level, shown(step).amr) == ("ana", "verified", ("pwd",))
