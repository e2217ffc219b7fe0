"""Whom a handle opens its task for. Sources: design section 6 (binding modes), feature A1 (grants).

Through a real installation the same is shown by tests/binding.
"""

import msgspec
import pytest
from tests.services.access.rig import ANA, ANONYMOUS, CHANNEL, Rig, call, outcome

from tasktrail.events.authority import Binding, BindingMode
from tasktrail.events.errors import NOT_FOUND_TEXT
from tasktrail.events.task import Grant, Task
from tasktrail.services import messages
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.judgement import judged
from tasktrail.services.access.rules import Rule
from tasktrail.testing.scenario import ANA as CREATOR
from tasktrail.testing.scenario import NOW_MS, created, given

BOB = Binding(tenant="acme", iss="https://id.example", sub="bob", client_id="desk")
NOBODY = Binding(tenant="acme", iss="", sub="", client_id="")
KINDS: dict[BindingMode, tuple[Binding, set[str]]] = {
    BindingMode.EXACT: (BOB, {"bob"}),
    BindingMode.USER: (msgspec.structs.replace(BOB, client_id=""), {"bob", "bob elsewhere"}),
    BindingMode.CLIENT: (msgspec.structs.replace(BOB, iss="", sub=""), {"bob", "eve at the desk"}),
    BindingMode.TENANT: (NOBODY, {"bob", "bob elsewhere", "eve at the desk"}),
}
CALLERS = {
    "bob": BOB,
    "bob elsewhere": msgspec.structs.replace(BOB, client_id="portal"),
    "eve at the desk": msgspec.structs.replace(BOB, sub="eve"),
    "nobody": NOBODY,
    "bob of another tenant": msgspec.structs.replace(BOB, tenant="globex"),
}


def granted(mode: BindingMode, until_ms: int = 0) -> Task:
    """A task of the creator's that is granted for reading."""
    to, _ = KINDS[mode]
    task = given(created()).task
    assert task is not None
    return msgspec.structs.replace(task, grants={"g": Grant(to=to, mode=mode, rights=("get",), until_ms=until_ms)})


@pytest.mark.requirement("A1")
@pytest.mark.parametrize("mode", list(BindingMode))
def test_a_grant_opens_to_whom_its_mode_names_and_never_to_nobody(mode: BindingMode) -> None:
    """Somebody of whom nothing but the tenant is known is nobody's grantee, also where the whole tenant is."""
    task, (_, opened) = granted(mode), KINDS[mode]
    found = {
        name
        for name, who in CALLERS.items()
        if judged("h", task, who, refused=None, right="get", now_ms=NOW_MS).rule is None
    }
    assert found == opened
    assert judged("h", task, BOB, refused=None, right="cancel", now_ms=NOW_MS).rule is Rule.OTHER_CONTEXT


@pytest.mark.requirement("A1")
def test_a_grant_ends_when_it_says() -> None:
    """`until_ms`."""
    task = granted(BindingMode.EXACT, NOW_MS + 1)
    assert task.binding == CREATOR
    assert judged("h", task, BOB, refused=None, right="get", now_ms=NOW_MS).rule is None
    assert judged("h", task, BOB, refused=None, right="get", now_ms=NOW_MS + 1).rule is Rule.OTHER_CONTEXT


@pytest.mark.requirement("A1", "A5")
@pytest.mark.parametrize("who", [ANA, ANONYMOUS], ids=["asserted", "anonymous"])
async def test_a_servers_word_on_its_callers_is_for_its_own_tasks(rig: Rig, who: messages.Caller) -> None:
    """A server that is trusted to verify its own callers is not trusted with those of another."""
    made = await rig.create(who)
    elsewhere = Channel(server="batch", in_process=False)
    asked = messages.GetTask(caller=who, call=call("tasks/get"), task_id=made.task_id)
    assert await outcome(rig.one.gate.get(asked, elsewhere)) == NOT_FOUND_TEXT
    assert await outcome(rig.one.gate.get(asked, CHANNEL)) is None
    ((_, _, event),) = await rig.denials()
    assert event.reasons == {"other-server-runs-task": 1}
