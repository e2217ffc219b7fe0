"""Who an operator is, by the token presented. Source: issue "Authority"; `configuration.Operator`."""

import base64
import hashlib

import pytest

from tasktrail.events.errors import InvalidRequest
from tasktrail.services.access.claims import digest
from tasktrail.services.configuration import RIGHTS, Operator
from tasktrail.services.operators import RESPONDER, Operators, Person, case_of

TOKEN = "ttr_" + "t" * 43


def named(name: str, token: str, *rights: str) -> Operator:
    return Operator(name=name, sha256=hashlib.sha256(token.encode()).hexdigest(), rights=rights or ("read",))


def test_the_responder_token_is_the_operator_with_every_right() -> None:
    person = Operators(TOKEN).who(TOKEN)
    assert person == Person(name=RESPONDER, rights=RIGHTS, token_hash=digest(TOKEN))


def test_a_named_operator_has_the_rights_that_were_configured() -> None:
    operators = Operators(TOKEN, (named("olga", "olga's", "read", "hold"), named("omar", "omar's")))
    olga, omar = operators.who("olga's"), operators.who("omar's")
    assert olga is not None
    assert omar is not None
    assert (olga.name, olga.rights) == ("olga", ("read", "hold"))
    assert (omar.name, omar.rights) == ("omar", ("read",))


def test_every_other_token_is_nobodys() -> None:
    operators = Operators(TOKEN, (named("olga", "olga's"),))
    hexadecimal = hashlib.sha256(b"olga's").hexdigest()
    for token in ("", " ", TOKEN[:-1], TOKEN + " ", "OLGA'S", hexadecimal, "\udcff", "x" * 100_000):
        assert operators.who(token) is None, token[:20]


def test_a_token_is_known_by_its_digest_as_in_dpop() -> None:
    """RFC 9449, section 4.2: `ath` is base64url of SHA-256, without padding."""
    ath = base64.urlsafe_b64encode(hashlib.sha256(b"a token").digest()).decode().rstrip("=")
    assert digest("a token") == ath
    assert len(ath) == 43


def test_a_case_is_one_printable_line_of_bounded_length() -> None:
    """Issue "Forensics": the case id of every reading is on the trail, where people read it."""
    for case in ("", "INC-7", "Fall Ü 9/2026", "x" * 200):
        assert case_of(case) == case
    for case in ("x" * 201, "a\nb", "a\x00", "\x1b[31m", "\u202einc", "\udcff"):
        with pytest.raises(InvalidRequest, match="200 printable characters"):
            case_of(case)
