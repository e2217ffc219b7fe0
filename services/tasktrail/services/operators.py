"""The people who read a trail and act on it: who the bearer token of an HTTP request is, and what they may.

Guarantees: a token is compared by its SHA-256 with every known one, in constant time, whichever it is; nobody's token
is kept, only digests. The responder token of the data directory is the operator named "responder", who has every
right; a hold still takes two people, so it needs a second, named one.

    operators = Operators(open_token(data), settings.operators)
    operators.who("ttr_…")  ->  Person(name="responder", rights=("read", …), token_hash="…")
"""

import hashlib
import hmac
from collections.abc import Iterable

import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.services.access.claims import digest
from tasktrail.services.configuration import RIGHTS, Operator

RESPONDER = "responder"
"""The name of whoever holds the responder token of the data directory."""
CASE_HEADER = "Tasktrail-Case"
"""The header of a request that names the case it belongs to, in UTF-8."""
CASE_MAX = 200


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """An operator whose token was presented. `token_hash`: the `digest` of it."""

    name: str
    rights: tuple[str, ...]
    token_hash: str


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: an operator, by the `digest` of the token presented (`token_hash`) and the peer address.

    `operator` is their name, "responder" for the holder of the data directory's own token; `rights`: see
    `configuration.RIGHTS`; `case_id` names the matter in which they ask, empty when they do not say.
    """

    token_hash: str
    address: str
    operator: str = RESPONDER
    rights: tuple[str, ...] = RIGHTS
    case_id: str = ""


def case_of(text: str) -> str:
    """The case that a request names.

    Raises:
        InvalidRequest: it is longer than `CASE_MAX` characters, or has some that do not print.
    """
    if len(text) > CASE_MAX or not text.isprintable():
        message = f"a case ({CASE_HEADER}, --case) is at most {CASE_MAX} printable characters on one line"
        raise InvalidRequest(message)
    return text


class Operators:
    """Everyone who may speak to the HTTP surface."""

    def __init__(self, responder_token: str, named: Iterable[Operator] = ()) -> None:
        everyone: list[tuple[bytes, str, tuple[str, ...]]] = [
            (hashlib.sha256(responder_token.encode()).digest(), RESPONDER, RIGHTS)
        ]
        everyone += [(bytes.fromhex(one.sha256), one.name, one.rights) for one in named]
        self._everyone = tuple(everyone)

    def who(self, token: str) -> Person | None:
        """Whose token this is; None when it is nobody's."""
        presented = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found: Person | None = None
        for known, name, rights in self._everyone:
            if hmac.compare_digest(presented, known) and found is None:
                found = Person(name=name, rights=rights, token_hash=digest(token))
        return found
