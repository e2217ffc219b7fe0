r"""Which kinds of secrets a payload's text shows: recognisable credentials, by their published formats alone. Pure.

Guarantees: the answer is words, never the secret or a part of it; the same text always gives the same answer. The
first MiB is looked through; a longer text has `SCANNED_IN_PART` added. Any bytes are taken. Examples and placeholders
are left alone where they can be told. That nothing is found does not prove that there is nothing.

JSON escapes hide nothing: a text with a backslash is looked through as it is and once more with its escapes undone
(`\/`, `\"`, `\n` and the like, `\u0020` to `\u007f`), after any number of backslashes, as JSON within JSON has them.

The time is linear in the text, whatever it holds: no repetition stands within another, and each is bounded, or is
possessive and passes over the same characters at most twice. Each pattern begins with letters to be searched for, and
what must not stand before them is looked at only then: so most of a text is passed at the speed of `memchr`.

    kinds(b'{"token": "ttr_…"}')  ->  ("tasktrail_token",)
"""

import base64
import re
from collections.abc import Callable

import msgspec

from tasktrail.events.facts import SCANNED_IN_PART
from tasktrail.services.responder import SERVER_TOKEN_PREFIX, TOKEN_PREFIX

SCANNED_BYTES = 1024 * 1024
"""How much of a text is looked through."""

_VARIED = 8
_RUN = 20
_DIGIT = re.compile(rb"[0-9]")
_BETWEEN = re.compile(rb"[_-]")
_PLACEHOLDERS = frozenset({b"pass", b"passwd", b"password", b"pw", b"pwd", b"secret", b"token"})


class _Header(msgspec.Struct):
    """What every JOSE header has (RFC 7515, section 4.1.1; RFC 7516, section 4.1.1)."""

    alg: str


_header = msgspec.json.Decoder(_Header)


def _always(_: bytes) -> bool:
    return True


def _jose(first: bytes) -> bool:
    """Whether it is the header of a JWT."""
    try:
        return bool(_header.decode(base64.urlsafe_b64decode(first + b"=" * (-len(first) % 4))).alg)
    except (ValueError, RecursionError):
        return False


def _varied(body: bytes) -> bool:
    """Not the x's and the dots of an example."""
    return len(set(body)) >= _VARIED


def _opaque(body: bytes) -> bool:
    """Varied, and not the words of a placeholder: with a digit, or with capitals among small letters."""
    mixed = _DIGIT.search(body) or body not in {body.lower(), body.upper()}
    return _varied(body) and bool(mixed) and not body.lower().startswith(b"your")


def _unworded(body: bytes) -> bool:
    """With OpenAI's mark (its name in Base64), or a long run without the hyphens that stand between words."""
    return b"T3BlbkFJ" in body or any(
        len(run) >= _RUN and _varied(run) and _DIGIT.search(run) for run in _BETWEEN.split(body)
    )


def _password(said: bytes) -> bool:
    """Not the name of what is to be put there."""
    said = said.lower()
    return said not in _PLACEHOLDERS and not said.startswith((b"$", b"your")) and len(set(said)) > 1


class _Format(msgspec.Struct, frozen=True):
    """A published format; `real` tells the group that matched from what only looks alike."""

    kind: str
    pattern: re.Pattern[bytes]
    real: Callable[[bytes], bool]

    def seen(self, text: bytes) -> bool:
        """Whether the text has one."""
        for match in self.pattern.finditer(text):  # noqa: SIM110 - on a short text any() takes half as long again
            if self.real(match[match.lastindex or 0]):
                return True
        return False


def _format(kind: str, pattern: str, real: Callable[[bytes], bool] = _varied) -> _Format:
    return _Format(kind, re.compile(pattern.encode()), real)


def _word(prefix: str) -> str:
    """A prefix before which there is no letter or digit."""
    return rf"{prefix}(?<![A-Za-z0-9]{prefix})"


_BEARER = r"[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?i:bearer)\s{1,4}([A-Za-z0-9._~+/-]{16,}+)"
_FORMATS = (
    # JWS and JWE in compact form: RFC 7515, section 7.1, RFC 7516, section 7.1. They begin as a JSON object does: with
    # a brace and a quotation mark, or with a brace and white space.
    _format(
        "jwt",
        r"e(?:yJ|yA|wo|w0|wk)(?<![A-Za-z0-9_-]...)[A-Za-z0-9_-]{12,}+(?=\.[A-Za-z0-9_-]*+\.[A-Za-z0-9_-]{16})",
        _jose,
    ),
    # RFC 7468, sections 10 and 11; with headers RFC 1421, section 4.4, and RFC 9580, section 6.2; OpenSSH's
    # PROTOCOL.key. The line alone, as a manual has it, is none: what follows is Base64 or a header.
    _format(
        "private_key",
        r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----\s{0,8}(?:[A-Za-z0-9+/=]{32}|[A-Za-z-]{1,20}: )",
        _always,
    ),
    # AWS IAM User Guide, "IAM identifiers", unique ID prefixes. The guide's own examples end in EXAMPLE.
    _format(
        "aws_access_key_id",
        r"A(?:KIA|SIA|BIA|CCA)(?<![A-Za-z0-9]....)([A-Z0-9]{16})(?<!EXAMPLE)(?![A-Za-z0-9])",
    ),
    # GitHub Docs, "About authentication to GitHub", token formats; changelog of 2026-05-15 for longer ghs_ tokens.
    _format("github_token", _word("gh") + r"(?:[pour]_([A-Za-z0-9]{36})|s_([A-Za-z0-9._-]{36}))"),
    _format("github_token", _word("github_pat_") + r"([A-Za-z0-9]{22}_[A-Za-z0-9]{59})"),
    # GitLab Docs, "GitLab token overview", token prefixes. An instance may have a prefix of its own before them.
    _format(
        "gitlab_token",
        _word("gl") + r"(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|ffct)-([A-Za-z0-9_-]{20})",
        _opaque,
    ),
    # Slack's developer documentation, "Tokens" and "Sending messages using incoming webhooks".
    _format("slack_token", _word("x") + r"(?:ox[abcdeoprs]|app)-([A-Za-z0-9%/+-]{20,}+)", _opaque),
    _format("slack_webhook", r"hooks\.slack\.com/services/(T[A-Z0-9]{6,20}/B[A-Z0-9]{6,20}/[A-Za-z0-9]{20})"),
    # Stripe's documentation, "API keys": secret and restricted keys of live mode.
    _format("stripe_key", r"k_live_(?<=[sr]k_live_)(?<![A-Za-z0-9].k_live_)([A-Za-z0-9]{16})"),
    # Google Cloud's documentation, "Manage API keys": 39 characters.
    _format("google_api_key", _word("AIza") + r"([A-Za-z0-9_-]{35})(?![A-Za-z0-9_-])"),
    # GitHub's changelog of 2021-09-23, "npm has a new access token format".
    _format("npm_token", _word("npm_") + r"([A-Za-z0-9]{36})"),
    # PyPI's help, "API tokens"; `AgE` is how a macaroon of libmacaroons' binary format 2 begins.
    _format("pypi_token", _word("pypi-") + r"AgE([A-Za-z0-9_-]{80})"),
    # OpenAI, Anthropic and who does it like them: "Authentication" of their API references.
    _format("sk_key", _word("sk-") + r"([A-Za-z0-9_-]{32,}+)", _unworded),
    # RFC 6750, section 2.1: as text, in JSON, in source, in an environment.
    _format("bearer_token", r"u(?<=[Aa]u)(?i:thorization)" + _BEARER, _opaque),
    _format("bearer_token", r"UTHORIZATION(?<=AUTHORIZATION)" + _BEARER, _opaque),
    # RFC 3986, section 3.2.1, without commas, which more often part one address from the next.
    _format(
        "url_password",
        r"://[A-Za-z0-9._~%!$&'()*+;=-]{0,128}:([A-Za-z0-9._~%!$&'()*+;=:-]{3,256}+)@[A-Za-z0-9\[]",
        _password,
    ),
    # The responder's and the MCP servers' token of a data directory: services/responder.py.
    *(
        _format("tasktrail_token", _word(prefix) + r"([A-Za-z0-9_-]{43})")
        for prefix in (TOKEN_PREFIX, SERVER_TOKEN_PREFIX)
    ),
)

_WHITE = re.compile(rb"(?<!\\)\\++[bfnrt]")
_PLAIN = re.compile(rb"(?<!\\)\\++(?=[\"'/])")
_CODED = re.compile(rb"(?<!\\)\\++u00([2-7][0-9A-Fa-f])")


def kinds(text: bytes) -> tuple[str, ...]:
    """The kinds of secrets seen in the first `SCANNED_BYTES` of a text, each once, always in the same order.

    `SCANNED_IN_PART` is the last when the text is longer than that.
    """
    start = text[:SCANNED_BYTES]
    readings = (start, _unescaped(start)) if b"\\" in start else (start,)
    found = {one.kind: None for one in _FORMATS if any(map(one.seen, readings))}
    if len(text) > SCANNED_BYTES:
        found[SCANNED_IN_PART] = None
    return tuple(found)


def _unescaped(text: bytes) -> bytes:
    text = _PLAIN.sub(b"", _WHITE.sub(b"\n", text))
    return _CODED.sub(lambda match: bytes.fromhex(match[1].decode()), text)
