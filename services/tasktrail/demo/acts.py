"""The demo's acts: strangers at the door, the scenarios, and then what the trail says of them.

Guarantees: every failure is an expectation that did not hold; one scenario's failure leaves the others theirs. Heavy to
import: both the MCP SDK and the audit store's shapes come with it.

    await play(record, out, service=service, issuers={"ana": acme, "bob": acme, "eve": globex})
    await question(record, out, service=service, issuers=…)
"""

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial
from http import HTTPStatus

import httpx2
from rich.console import Console

from tasktrail.demo import asking, telling, trail
from tasktrail.demo.checks import Checks, Played, Record
from tasktrail.demo.child import OwnService
from tasktrail.demo.hosting import hosting, listener, url_of
from tasktrail.demo.people import Person
from tasktrail.demo.scenarios import SCENARIOS, Scenario, Stage
from tasktrail.demo.tools import Floor, build
from tasktrail.demo.trail import Attacker
from tasktrail.mcp.verifier import Issuer
from tasktrail.projections.audit.timeline import Timeline
from tasktrail.testing.issuer import LocalIssuer

CLIENT_ID = "portal"
_SPOTLIGHT = {
    "elicitation": "the payment, approved in two parts",
    "foreign": "the attacked task: the responder is told why",
}
"""The scenarios whose timelines are shown, and what is to be seen there."""


async def play(record: Record, out: Console, *, service: OwnService, issuers: dict[str, LocalIssuer]) -> None:
    """Start the MCP server, turn strangers away, and let ana, bob and eve play every scenario at the same time."""
    with listener() as listening:
        url, floor = url_of(listening), Floor()
        known = [Issuer(one.url, one.jwks_url, url) for one in dict.fromkeys(issuers.values())]
        telling.opening(out, service=service.url, mcp=url, issuers=[one.url for one in known], data=service.data)
        async with hosting(build(target=service.target, url=url, issuers=known, floor=floor), listening):
            await _strangers(record.checks, url, issuers["ana"])
            record.tokens = {name: issuer.issue(name, CLIENT_ID, "tools", aud=url) for name, issuer in issuers.items()}
            await _scenarios(record, out, url, floor)


async def _strangers(checks: Checks, url: str, issuer: LocalIssuer) -> None:
    """Who has no token, or one of somebody else's making, does not get in."""
    with LocalIssuer() as forger:
        forged = forger.issue("ana", CLIENT_ID, aud=url, iss=issuer.url)
    elsewhere = issuer.issue("ana", CLIENT_ID, aud="https://elsewhere.example/mcp")
    async with httpx2.AsyncClient(timeout=5, trust_env=False) as client:
        for what, token in (("no", ""), ("a forged", forged), ("another server's", elsewhere)):
            answer = await client.post(url, json={}, headers={"Authorization": f"Bearer {token}"} if token else {})
            status = answer.status_code
            checks.hold(
                f"who has {what} token is turned away by the MCP server", status == HTTPStatus.UNAUTHORIZED, seen=status
            )


async def _scenarios(record: Record, out: Console, url: str, floor: Floor) -> None:
    telling.heading(out, "Eight things that happen to long-running tools")
    async with AsyncExitStack() as stack:
        people: dict[str, Person] = {}
        for name, token in record.tokens.items():
            person = Person(name, url=url, token=partial(str, token))
            person.content = {"approve": True, "cost_centre": f"cc {record.secret}"}
            person.words = f"{name}'s model says {record.secret}"
            people[name] = await stack.enter_async_context(person)
        stages = [Stage(**people, floor=floor, checks=Checks(), secret=record.secret) for _ in SCENARIOS]
        playing = [asyncio.create_task(_scenario(*one)) for one in zip(SCENARIOS, stages, strict=True)]
        for task, stage in zip(playing, stages, strict=True):
            played, took_s = await task
            record.checks.expectations += stage.checks.expectations
            record.played.append(played)
            telling.played(out, played, held=stage.checks.held, took_s=took_s)


async def _scenario(scenario: Scenario, stage: Stage) -> tuple[Played, float]:
    began = time.monotonic()
    name: str = scenario.__name__
    try:
        played = await scenario(stage)
    except Exception as error:  # noqa: BLE001 - one scenario's failure leaves the others theirs
        stage.checks.hold(f"{name} runs to its end", held=False, seen=f"{type(error).__name__}: {error}")
        played = Played(scenario=name, task_id="", status="unknown", line="did not run to its end")
    return played, time.monotonic() - began


async def question(record: Record, out: Console, *, service: OwnService, issuers: dict[str, LocalIssuer]) -> None:
    """Ask who authorised each step, check it, and have the command line print the two most telling tasks."""
    ids, checks = record.ids, record.checks
    found = dict(zip(ids, await asking.timelines(service.data, ids.values()), strict=True))
    record.refs = {scenario: timeline.task_ref for scenario, timeline in found.items()}
    if len(found) < len(SCENARIOS):
        return
    trail.check_two_parts(checks, found["elicitation"], "ana")
    trail.check_ended(checks, found["cancelled"], found["expired"])
    attackers = (
        Attacker(name="bob", iss=issuers["bob"].url, differs=("sub",)),
        Attacker(name="eve", iss=issuers["eve"].url, differs=("tenant", "iss", "sub")),
    )
    trail.check_attacked(checks, found["foreign"], attackers)
    trail.check_all(checks, list(found.values()))
    telling.heading(out, "Who authorised each step?")
    for scenario, about in _SPOTLIGHT.items():
        await _show(checks, out, service, ids[scenario], found[scenario], about)


async def _show(  # noqa: PLR0913, PLR0917 - what is shown, where, and what it must equal
    checks: Checks, out: Console, service: OwnService, task_id: str, asked: Timeline, about: str
) -> None:
    if out.quiet:
        printed = await asking.printed(service.data, task_id)
        same, seen = printed.steps == asked.steps, f"{len(printed.steps)} steps, not the {len(asked.steps)} asked for"
    else:
        telling.heading(out, f"$ tasktrail timeline -   # {about}")
        code = await asking.show(service.data, task_id, columns=out.width)
        same, seen = code == 0, f"exit code {code}"
    checks.hold(f"`tasktrail timeline` prints {about}", same, seen=seen)
