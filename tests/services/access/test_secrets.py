"""Kinds of secrets in a text. Source: feature R4 (secrets in payloads are flagged); the formats are as `secrets` cites.

What looks like a secret here is made at run time, of pieces, and opens nothing.
"""

import base64
import hashlib
import json
import string
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from tests.services.access.secret_text import BASE64URL, body, jwt, part

from tasktrail.events.facts import SCANNED_IN_PART
from tasktrail.services import responder
from tasktrail.services.access.secrets import SCANNED_BYTES, kinds

ROOT = Path(__file__).parents[3]
UPPER = string.ascii_uppercase + "234567"
HEX = "0123456789abcdef"


def pem(kind: PrivateFormat, password: bytes = b"") -> str:
    """A private key that was made for this."""
    hidden = BestAvailableEncryption(password) if password else NoEncryption()
    return generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, kind, hidden).decode()


def secrets() -> list[tuple[str, str]]:
    """Kind and secret, by the published format of each."""
    mark = base64.b64encode(b"OpenAI").decode()
    return [
        ("jwt", jwt({"alg": "HS256", "typ": "JWT"})),
        ("jwt", jwt({"typ": "at+jwt", "alg": "EdDSA", "kid": "1"}, separators=(", ", ": "))),
        ("jwt", part({"alg": "dir", "enc": "A256GCM"}) + "." + "".join(f".{body(22, BASE64URL)}" for _ in range(3))),
        *(("private_key", pem(kind)) for kind in (PrivateFormat.PKCS8, PrivateFormat.OpenSSH)),
        ("private_key", pem(PrivateFormat.TraditionalOpenSSL)),
        ("private_key", pem(PrivateFormat.PKCS8, b"hidden")),
        ("private_key", pem(PrivateFormat.TraditionalOpenSSL, b"hidden")),
        ("private_key", f"-----BEGIN PGP PRIVATE {'KEY'} BLOCK-----\n\n{body(64)}\n"),
        *(("aws_access_key_id", prefix + body(16, UPPER)) for prefix in ("AKIA", "ASIA", "ABIA", "ACCA")),
        *(("github_token", f"gh{kind}_{body(36)}") for kind in "pousr"),
        ("github_token", f"ghs_{jwt({'alg': 'RS256'})}"),
        ("github_token", f"github_pat_{body(22)}_{body(59)}"),
        *(("gitlab_token", f"gl{kind}-{body(20, BASE64URL)}") for kind in ("pat", "rt", "cbt", "agent")),
        ("gitlab_token", f"SIE-glpat-{body(20)}"),
        ("slack_token", f"xoxb-{body(12, string.digits)}-{body(13, string.digits)}-{body(24)}"),
        ("slack_token", f"xoxe.xoxp-1-{body(40)}"),
        ("slack_token", f"xapp-1-A{body(10, UPPER)}-{body(13, string.digits)}-{body(64, HEX)}"),
        ("slack_webhook", f"https://hooks.slack.com/services/T{body(10, UPPER)}/B{body(10, UPPER)}/{body(24)}"),
        *(("stripe_key", f"{kind}k_live_{body(24)}") for kind in "sr"),
        ("google_api_key", f"AIza{body(35, BASE64URL)}"),
        ("npm_token", f"npm_{body(36)}"),
        ("pypi_token", "pypi-" + base64.urlsafe_b64encode(b"\x02\x01\x08example!" + body(120).encode()).decode()),
        ("sk_key", f"sk-{body(20)}{mark}{body(20)}"),
        ("sk_key", f"sk-proj-{body(74, BASE64URL)}{mark}{body(74, BASE64URL)}"),
        ("sk_key", f"sk-ant-api03-{body(93)}AA"),
        ("sk_key", f"sk-{body(32, HEX)}"),
        ("bearer_token", f"Authorization: Bearer {body(20)}"),
        ("bearer_token", f"AUTHORIZATION=bearer {body(20)}"),
        ("bearer_token", json.dumps({"headers": {"authorization": f"Bearer {body(32)}="}})),
        ("url_password", f"postgresql://ana:{body(12)}@db.example:5432/orders"),
        ("url_password", f"redis://:{body(12)}@cache.example"),
        ("tasktrail_token", responder.TOKEN_PREFIX + body(43, BASE64URL)),
        ("tasktrail_token", responder.SERVER_TOKEN_PREFIX + body(43, BASE64URL)),
    ]


SECRETS = secrets()
NAMED = [pytest.param(kind, one, id=f"{kind} {number}") for number, (kind, one) in enumerate(SECRETS)]

NO_SECRETS = {
    "prose": "The key to the task-risk-assessment-of-2026 is in the AKIA drawer; authorization: bearer of good news",
    "a manual on PEM": f"it begins with -----BEGIN PRIVATE {'KEY'}----- and then come many lines",
    "the public half": f"-----BEGIN PUBLIC {'KEY'}-----\n{body(64)}",
    "the example of AWS": "AKIA" + "IOSFODNN7" + "EXAMPLE",
    "capitals": "THEWHOLEOFASIAPACIFICREGION ASIAPACIFICREGIONSALESREPORT",
    "x's": " ".join((f"ghp_{'x' * 36}", f"glpat-{'x' * 20}", f"npm_{'0' * 36}", f"AIza{'x' * 35}", f"sk-{'x' * 48}")),
    "a placeholder": "Authorization: Bearer YOUR_ACCESS_TOKEN_HERE and glpat-your-own-token-goes-here",
    "a variable": "Authorization: Bearer ${TOKEN} and https://$USER:$PASSWORD@host and https://{user}:{password}@host",
    "words in an address": f"https://user:{'password'}@host.example and https://host.example:8080/@ana and ssh://git@host",
    "a list of addresses": "http://a.example:80,bob@b.example nats://a:4222,nats://b:4222",
    "names with hyphens": "sk-learn-pipeline-with-many-steps-and-2-options-for-everybody-who-asks",
    "an id with hyphens": "sk-550e8400-e29b-41d4-a716-446655440000",
    "dotted names": "eyJ.example.com, www.eyes-wide.example, e.y.J",
    "dotted Base64 of other JSON": f"{part({'page': 7, 'of': 12})}.{part({'sort': 'name'})}.{body(43)}",
    "the header of a JWT alone": jwt({"alg": "HS256"}).partition(".")[0],
    "a digest": hashlib.sha256(b"text").hexdigest(),
    "test mode": "sk_test_" + body(24),
    "a long name": f"myghp_{body(36)} xAIza{body(35)}",
    "nothing": "",
}


def as_json(text: str, *, deep: int = 1) -> bytes:
    """A value's text, in JSON that is a value of JSON, and so on."""
    for _ in range(deep):
        text = json.dumps({"said": text})
    return text.encode()


@pytest.mark.requirement("R4")
@pytest.mark.parametrize(("kind", "secret"), NAMED)
def test_a_credential_is_known_by_its_published_format(kind: str, secret: str) -> None:
    """R4; each in the words around it that a payload has."""
    for text in (secret, f"use {secret} please", f"x={secret}\n", f"'{secret}'", f"({secret}),"):
        assert kind in kinds(text.encode()), text
    assert kind in kinds(json.dumps({secret: 1}).encode())


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("deep", [1, 2, 3])
@pytest.mark.parametrize(("kind", "secret"), NAMED)
def test_json_escapes_hide_nothing(kind: str, secret: str, deep: int) -> None:
    r"""RFC 8259, section 7: any character may be written as `\u…`, the solidus as `\/`; JSON is often within JSON."""
    assert kind in kinds(as_json(secret, deep=deep))
    assert kind in kinds(as_json(f"line\n{secret}\tend", deep=deep))
    assert kind in kinds(as_json(f"C:\\n{secret}", deep=deep))
    hidden = as_json(secret, deep=deep - 1).decode() if deep > 1 else f'"{secret}"'
    for letter in "-_./:@ kgABP":
        hidden = hidden.replace(letter, f"\\u{ord(letter):04x}" if letter != "/" else "\\/")
    assert kind in kinds(hidden.replace("\n", "\\n").encode())
    assert kind in kinds(hidden.replace("\n", "\\n").replace("\\", "\\\\\\").encode())


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("name", NO_SECRETS)
def test_what_only_looks_alike_is_left_alone(name: str) -> None:
    """R4: by published formats only, so that a flag is worth a look."""
    for text in (NO_SECRETS[name].encode(), as_json(NO_SECRETS[name]), as_json(NO_SECRETS[name], deep=2)):
        assert kinds(text) == (), text


@pytest.mark.requirement("R4")
def test_the_answer_is_words_each_once_always_in_the_same_order() -> None:
    """The answer goes on the trail: it must not hold a secret or a part of one."""
    everything = "\n".join(secret for _, secret in SECRETS)
    backwards = "\n".join(secret for _, secret in reversed(SECRETS))
    assert kinds(everything.encode()) == kinds(backwards.encode()) == tuple(dict.fromkeys(kind for kind, _ in SECRETS))


@pytest.mark.requirement("R4")
def test_every_flag_is_documented() -> None:
    """Style 13: what is shown is documented or a test fails."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    flags = {kind for kind, _ in SECRETS} | {SCANNED_IN_PART}
    assert not [flag for flag in flags if f"`{flag}`" not in page]


@pytest.mark.requirement("R4")
def test_of_a_long_text_the_first_mib_is_looked_through_and_the_answer_says_so() -> None:
    secret = f" npm_{body(36)}".encode()
    fits = b" " * (SCANNED_BYTES - len(secret)) + secret
    assert kinds(fits) == ("npm_token",)
    assert kinds(fits + b" ") == ("npm_token", SCANNED_IN_PART)
    assert kinds(b" " + fits) == (SCANNED_IN_PART,)


@pytest.mark.requirement("R4")
def test_bytes_that_are_no_text_hide_nothing() -> None:
    """The text is not decoded: invalid UTF-8 is as good as any."""
    secret = f"npm_{body(36)}".encode()
    assert kinds(b"\xff\xfe\0" + secret + b"\xc3") == ("npm_token",)
    header = base64.urlsafe_b64encode(b'{"alg":"\xff"}aaaa').rstrip(b"=")
    assert kinds(header + b"." + header + b"." + header * 3) == ()
    deep = base64.urlsafe_b64encode(b'{"a":' + b"[" * 100_000).rstrip(b"=")
    assert kinds(deep + b"." + deep + b"." + deep) == ()


NEARLY = {
    "one letter": "a",
    "zeros": "\0",
    "backslashes": "\\",
    "escapes": "\\n",
    "coded escapes": "\\\\\\u0041",
    "escapes that end early": "\\\\\\u004",
    "headers without an end": "eyJ",
    "headers and dots": "eyJaaaaaaaaaaaaaaaaaa..",
    "headers of nothing": f"{part({'a': 1, 'b': 2, 'c': 3})}..{'a' * 16} ",
    "armour": "-----BEGIN ",
    "armour without a key": f"-----BEGIN {'A' * 24} PRIVATE {'KEY'}-----        ",
    "key ids": f"AKIA{'A' * 16} ",
    "github": f"ghp_{'a' * 36} ",
    "gitlab": "glpat-",
    "slack": "xoxb-",
    "slack without variety": f"xoxb-{'a' * 20} ",
    "sk": "sk-",
    "sk with words": "sk-aaaaaaaa-aaaaaaaaaaaa-bbbbbbbbbbb ",
    "bearers": "authorization    =    bearer    ",
    "bearers of nothing": f"Authorization: Bearer {'a' * 16} ",
    "addresses": "://a:",
    "addresses with colons": "://" + ":" * 130,
    "addresses without a password": "://:aaa@a ",
    "pieces of all": "eyJ gh_ gl- xox- AKIA k_live_ AIza npm_ pypi-AgE sk- Authorization: Bearer :// ttr_ \\n ",
}


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("name", NEARLY)
def test_no_text_takes_longer_than_its_length_explains(name: str) -> None:
    """A MiB of what nearly matches: were the time not linear in it, this would not end."""
    piece = NEARLY[name].encode()
    assert kinds((piece * (SCANNED_BYTES // len(piece) + 1))[:SCANNED_BYTES]) == ()
