"""Too many callers who are not believed are recorded as one. Source: issue "Authority", limits: folding of denials."""

import msgspec
import pytest

from tasktrail.events.authority import Authority, Credential, Level, Method, Principal, Request, Verification
from tasktrail.services.access.strangers import APART, MINUTE_MS, Strangers
from tasktrail.testing.scenario import authority


def refused(sub: str, level: Level = Level.CLAIMED) -> Authority:
    """Somebody with a token that does not hold."""
    credential = Credential(method=Method.JWT, verification=Verification.BAD_SIGNATURE, token_hash=sub, level=level)
    principal = Principal(iss="https://id.example", sub=sub, level=level)
    return msgspec.structs.replace(authority(), principal=principal, credential=credential)


@pytest.mark.requirement("P4", "T1")
def test_the_first_are_told_apart_and_further_ones_are_one() -> None:
    """Otherwise a made-up token for each request writes an entry for each."""
    strangers = Strangers()
    known = {strangers.known(refused(str(number)), 0) for number in range(10 * APART)}
    assert len(known) == APART + 1
    (rest,) = (one for one in known if one.principal and not one.principal.sub)
    assert rest.credential is not None
    assert (rest.client, rest.credential.token_hash, rest.credential.verification) == (
        None,
        "",
        Verification.BAD_SIGNATURE,
    )
    assert strangers.known(refused("0"), 0) == refused("0")


@pytest.mark.requirement("P4", "T1")
def test_made_up_names_of_servers_begin_no_count_of_their_own() -> None:
    """At the tasks endpoint the path names the server, and a caller may write any."""
    strangers = Strangers()
    known: set[Authority] = set()
    for number in range(10 * APART):
        asked = Request(method="tasks/get", server=f"made-up-{number}", server_level=Level.CLAIMED)
        known.add(strangers.known(msgspec.structs.replace(refused("mallory"), request=asked), 0))
    assert len(known) == APART + 1
    assert sum(not (one.request and one.request.server) for one in known) == 1


@pytest.mark.requirement("P4")
def test_a_minute_later_they_are_told_apart_again() -> None:
    """It is a limit, no verdict on an address."""
    strangers = Strangers()
    for number in range(2 * APART):
        strangers.known(refused(str(number)), 0)
    assert strangers.known(refused("late"), MINUTE_MS) == refused("late")


@pytest.mark.requirement("T1")
def test_whoever_is_believed_is_never_one_of_many() -> None:
    """A denial of somebody known names them, however many there are."""
    strangers = Strangers()
    for number in range(10 * APART):
        one = refused(str(number), Level.ASSERTED)
        assert strangers.known(one, 0) == one
