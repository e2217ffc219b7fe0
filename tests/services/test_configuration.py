"""The configuration file: every problem by line, key and remedy. Source: issue 3, "Configuration"."""

import tomllib
from pathlib import Path

import pytest

from tasktrail.events.authority import BindingMode
from tasktrail.events.errors import InvalidRequest
from tasktrail.services import toml_lines
from tasktrail.services.configuration import DAY_MS, ApiKey, Retention, Tlog, Tool, Witness
from tasktrail.services.configuration_file import FILE_BYTES_MAX
from tasktrail.services.configuration_shown import configuration, text, without_passwords
from tasktrail.services.settings import check, effective, load

DIGEST = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
ISSUER = '[[issuers]]\nurl = "https://id.example"\naudience = ["mcp"]\njwks_url = "https://id.example/jwks"\n'


def problems(tmp_path: Path, said: str) -> list[str]:
    """What `config check` says, without the directory."""
    path = tmp_path / "tasktrail.toml"
    path.write_text(said, encoding="utf-8")
    return [one.replace(f"{tmp_path}/", "") for one in check(path)]


def only(tmp_path: Path, said: str) -> str:
    """The one problem of a file."""
    found = problems(tmp_path, said)
    assert len(found) == 1, found
    return found[0]


def test_a_whole_file_becomes_settings(tmp_path: Path) -> None:
    """Each table and the flat settings; a path in the file is relative to the file."""
    secret = tmp_path / "introspection.secret"
    secret.touch(mode=0o600)
    path = tmp_path / "tasktrail.toml"
    path.write_text(
        f"""
[service]
data = "data"
port = 0
hosts = ["trail.example"]
anonymous = false
tenants = {{"https://id.example" = "acme"}}
nats_server = ""

{ISSUER}tenant = "acme"
algorithms = ["ES256"]
introspection_url = "http://127.0.0.1:9/introspect"
introspection_client_id = "tasktrail"
introspection_secret_file = "introspection.secret"

[[servers]]
name = "reports"
asserts = true

[[tools]]
server = "rep*"
binding = "user"
ttl_max_ms = 3_600_000
[tools.retention]
failed_ms = 0

[[api_keys]]
name = "build"
sha256 = "{DIGEST}"

[[operators]]
name = "ana"
sha256 = "{OTHER}"
rights = ["read", "hold"]

[retention]
payloads_ms = 1

[limits]
polls_early = 3

[privacy]
tenants = ["*"]
"""
    )
    settings = load({}, config=path)
    assert (settings.data, settings.port, settings.hosts, settings.anonymous) == (
        tmp_path / "data",
        0,
        ("trail.example",),
        False,
    )
    assert settings.nats_server is None
    assert settings.issuers[0].introspection_secret_file == str(secret)
    assert settings.tools == (
        Tool(server="rep*", binding=BindingMode.USER, ttl_max_ms=3_600_000, retention=Retention(failed_ms=0)),
    )
    assert settings.api_keys == (ApiKey(name="build", sha256=DIGEST),)
    assert settings.operators[0].rights == ("read", "hold")
    assert (settings.retention.payloads_ms, settings.limits.polls_early) == (1, 3)
    assert settings.privacy.covers("anybody")
    assert check(path) == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[service]\nport = 70000\n", "tasktrail.toml:2: port: 70000 is more than 65535; lower it"),
        ("[service]\nfold_ms = 1\n", "tasktrail.toml:2: fold_ms: 1 is less than 10; raise it"),
        ('[service]\nport = "80"\n', "tasktrail.toml:2: port: give a whole number, without quotes"),
        ("[service]\nport = true\n", "tasktrail.toml:2: port: give a whole number, without quotes"),
        ("[service]\nhost = 1\n", 'tasktrail.toml:2: host: give text in quotes: "…"'),
        ("[service]\nanonymous = 0\n", "tasktrail.toml:2: anonymous: give true or false, without quotes"),
        ('[service]\nhosts = "a"\n', 'tasktrail.toml:2: hosts: give a list: ["…", "…"]'),
        ('[service]\ndata = ""\n', "tasktrail.toml:2: data: is empty; give it"),
        ("[service]\n\nprot = 1\n", "tasktrail.toml:3: prot: no setting has this name; did you mean port?"),
        ("[service]\nxyzzy = 1\n", "tasktrail.toml:2: xyzzy: no setting has this name; remove it"),
        ("port = 1\n", "tasktrail.toml:1: port: write it in the table [service]"),
        ("[service]\n[service.limits]\n", "tasktrail.toml:2: limits: begin it with [limits], outside of [service]"),
        ("[[api_key]]\n", "tasktrail.toml:1: api_key: no table has this name; did you mean api_keys?"),
        ("[issuers]\n", "tasktrail.toml:1: issuers: there may be several; begin each with [[issuers]]"),
        ("[[limits]]\n", "tasktrail.toml:1: limits: there is one; begin it with [limits]"),
        (
            ISSUER + "skew_ms = 900000\n",
            "tasktrail.toml:5: issuers[0].skew_ms: 900000 is more than 300000 (5 min); lower it",
        ),
        (
            ISSUER + '[[issuers]]\nurl = "https://b"\njwks_url = "https://b/k"\n',
            "tasktrail.toml:5: issuers[1]: audience is missing; add it",
        ),
        (ISSUER + 'jwks = "x"\n', "issuers[0].jwks: no setting has this name; did you mean jwks_url?"),
        (
            ISSUER.replace('["mcp"]', '["mcp", ""]'),
            "tasktrail.toml:3: issuers[0].audience: [1]: is empty; give it",
        ),
        (
            '[[tools]]\nbinding = "usr"\n',
            'tasktrail.toml:2: tools[0].binding: "usr" is none of exact, user, client, tenant; choose one',
        ),
        (
            "[[tools]]\nretention = {completed_ms = -1}\n",
            "tasktrail.toml:2: tools[0].retention.completed_ms: -1 is less than 0; raise it",
        ),
        ("[limits]\npolls_early = 0\n", "tasktrail.toml:2: limits.polls_early: 0 is less than 1; raise it"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_its_line_key_and_remedy(tmp_path: Path, said: str, told: str) -> None:
    """Issue 3: validated with errors that name the line and the fix."""
    assert told in only(tmp_path, said)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (ISSUER * 2, "tasktrail.toml:5: issuers[1]: url: issuers[0] has the same"),
        (ISSUER.replace('"https://id.example"', '"tasktrail"'), ":2: issuers[0].url: is tasktrail's own name"),
        (ISSUER.replace('["mcp"]', "[]"), "tasktrail.toml:3: issuers[0].audience: names nobody"),
        (
            ISSUER.replace("https://id.example/jwks", "http://id.example/jwks"),
            ":4: issuers[0].jwks_url: would be asked in",
        ),
        (ISSUER.replace("https://id.example/jwks", "file:///etc/passwd"), ":4: issuers[0].jwks_url: is no address"),
        (
            ISSUER.replace("https://id.example/jwks", "https://a:b@id.example/"),
            ":4: issuers[0].jwks_url: holds a password",
        ),
        (ISSUER.replace("https://id.example/jwks", "https://[::1"), ":4: issuers[0].jwks_url: is no address"),
        (ISSUER.replace("jwks_url", "tenant"), "tasktrail.toml:1: issuers[0]: its tokens cannot be checked"),
        (ISSUER + 'algorithms = ["none", "HS256"]\n', ":5: issuers[0].algorithms: none, HS256 cannot be used; choose"),
        (
            ISSUER + 'introspection_client_id = "a"\n',
            ":5: issuers[0].introspection_client_id: is for introspection; give introspection_url too",
        ),
        ('[[servers]]\nname = "a"\n' * 2, ":3: servers[1]: name: servers[0] has the same"),
        ('[[servers]]\nname = "*"\n[[servers]]\nname = "a"\n', ":3: servers[1]: is never reached: servers[0] fits"),
        ('[[servers]]\nname = "a?"\n', ":2: servers[0].name: holds one of ?[]"),
        ('[[tools]]\n[[tools]]\ntool = "a*"\n', ":2: tools[1]: is never reached: tools[0] fits the same"),
        ("[[tools]]\n[[tools]]\n", ":2: tools[1]: server, tool and tenant: tools[0] has the same"),
        ('[[tools]]\ntenant = "a*"\n', ":2: tools[0].tenant: is one tenant's name, or * for all"),
        ("[[tools]]\nttl_default_ms = 86400001\n", ":2: tools[0].ttl_default_ms: 86400001 exceeds the service's"),
        (
            "[[tools]]\nttl_max_ms = 1\nttl_default_ms = 2\n",
            ":3: tools[0].ttl_default_ms: 2 exceeds its ttl_max_ms (1)",
        ),
        ("[service]\nttl_max_ms = 1\n", ":2: ttl_max_ms: ttl_default_ms (3600000) exceeds ttl_max_ms (1)"),
        ("[service]\nttl_default_ms = 86400001\n", ":2: ttl_default_ms: ttl_default_ms (86400001) exceeds"),
        (f'[[operators]]\nname = "responder"\nsha256 = "{DIGEST}"\n', ":2: operators[0].name: responder is the holder"),
        (
            f'[[operators]]\nname = "a"\nsha256 = "{DIGEST}"\nrights = ["root"]\n',
            ":4: operators[0].rights: root: there is no such right; choose among read, unseal, revoke",
        ),
        (f'[[operators]]\nname = "a"\nsha256 = "{DIGEST}"\nrights = []\n', ":4: operators[0].rights: gives none"),
        (
            f'[[api_keys]]\nname = "a"\nsha256 = "{DIGEST}"\n[[operators]]\nname = "a"\nsha256 = "{DIGEST}"\n',
            ":6: operators[0].sha256: is the same key as api_keys[0]",
        ),
        (
            f'[[operators]]\nname = "a"\nsha256 = "{DIGEST}"\n[[servers]]\nname = "a"\nsha256 = "{DIGEST}"\n',
            ":6: servers[0].sha256: is the same key as operators[0]",
        ),
        (
            '[[api_keys]]\nname = "a"\nsha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"\n',
            ":3: api_keys[0].sha256: is the digest of an empty key",
        ),
        ('[privacy]\ntenants = ["a", "b*"]\n', ":2: privacy.tenants[1]: is one tenant's name"),
    ],
)
def test_what_contradicts_itself_is_told_with_its_line(tmp_path: Path, said: str, told: str) -> None:
    """Names once, addresses that are never asked in the clear, rules that are reached, rights that exist."""
    assert told in only(tmp_path, said)


def test_introspection_needs_a_client_and_a_secret_of_its_own(tmp_path: Path) -> None:
    """RFC 7662, section 2.1: the caller authenticates. The secret's file: there, and its owner's alone."""
    said = ISSUER + 'introspection_url = "https://id.example/i"\n'
    assert [one.split(": ")[1] for one in problems(tmp_path, said)] == [
        "issuers[0].introspection_client_id",
        "issuers[0].introspection_secret_file",
    ]
    said += 'introspection_client_id = "tasktrail"\nintrospection_secret_file = "s"\n'
    assert "tasktrail.toml:7: issuers[0].introspection_secret_file: s: No such file" in only(tmp_path, said)
    (tmp_path / "s").touch(mode=0o600)
    assert problems(tmp_path, said) == []
    (tmp_path / "s").chmod(0o640)
    assert "s can be read by others (mode 0640); run: chmod 600 s" in only(tmp_path, said)


def test_all_problems_of_a_file_are_told_and_a_start_tells_the_first(tmp_path: Path) -> None:
    """One mistake after the other would be a start for each."""
    assert len(problems(tmp_path, "[service]\nport = -1\nprot = 1\n[limits]\npolls_early = 0\n")) == 3
    with pytest.raises(InvalidRequest, match=r"tasktrail\.toml:2: port: -1 .* \(and 2 more; see them with"):
        load({}, config=tmp_path / "tasktrail.toml")


def test_no_message_quotes_what_stands_where_a_digest_should(tmp_path: Path) -> None:
    """A key put there by mistake is a secret."""
    told = only(tmp_path, '[[api_keys]]\nname = "a"\nsha256 = "s3cret"\n')
    assert "tasktrail.toml:3: api_keys[0].sha256: give 64 lower-case hex digits" in told
    assert "s3cret" not in told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"[service]\nport = \n", r":2: not TOML in column 8"),
        (b'[service]\n\nhost = "a\n', r":3: not TOML in column \d+"),
        (b"[service]\nport = 1\nport = 2\n", r":3: not TOML in column 9: Cannot overwrite"),
        (b"[service]\nhosts = [\n", r":2: not TOML at its end|:2: not TOML in column"),
        (b"[service]\n\xff\n", r":2: not UTF-8"),
        (b"#" * (FILE_BYTES_MAX + 1), r"larger than 256 KiB"),
    ],
)
def test_what_is_not_toml_is_refused_with_the_line(tmp_path: Path, said: bytes, told: str) -> None:
    """Issue 3: errors name the line."""
    (tmp_path / "a.toml").write_bytes(said)
    with pytest.raises(InvalidRequest, match=told):
        check(tmp_path / "a.toml")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A service never starts without the configuration it was told to use."""
    with pytest.raises(InvalidRequest, match="No such file"):
        load({}, config=tmp_path / "none.toml")
    with pytest.raises(InvalidRequest, match="No such file"):
        load({"TASKTRAIL_CONFIG": str(tmp_path / "none.toml")})


def test_each_value_has_the_line_of_its_statement() -> None:
    """Multi-line texts and lists, dotted keys, comments, tables within lists of tables."""
    said = (
        '# port = 1\na.b = 1 # c\n"x.y" = """\n[t]\nz = 1\n"""\nl = [\n  "]", # [\n  {k = 1},\n]\n'
        "[[r]]\n[r.s]\nt = 1\n[[r]]\n[[r.u]]\n[r.s]\nt = 2\n[[r.u]]\nv = 'w'\n"
    )
    tomllib.loads(said)
    found = toml_lines.lines(said)
    expected = {
        ("a",): 2,
        ("a", "b"): 2,
        ("x.y",): 3,
        ("l",): 7,
        ("l", 0): 7,
        ("l", 1): 7,
        ("l", 1, "k"): 7,
        ("r", 0): 11,
        ("r", 0, "s"): 12,
        ("r", 0, "s", "t"): 13,
        ("r", 1): 14,
        ("r", 1, "u", 0): 15,
        ("r", 1, "s"): 16,
        ("r", 1, "s", "t"): 17,
        ("r", 1, "u", 1): 18,
        ("r", 1, "u", 1, "v"): 19,
    }
    assert found == expected


def test_lines_end_as_an_editor_on_another_system_ends_them(tmp_path: Path) -> None:
    """CRLF is TOML too."""
    assert "tasktrail.toml:2: port" in only(tmp_path, "[service]\r\nport = -1\r\n")


def test_what_is_shown_says_where_each_value_comes_from_and_no_secret(tmp_path: Path) -> None:
    """Issue 3: `config show` prints the effective one without secrets. It reads back as TOML."""
    path = tmp_path / "tasktrail.toml"
    path.write_text(f'[service]\nport = 1\nfold_ms = 20\n[[api_keys]]\nname = "a"\nsha256 = "{DIGEST}"\n')
    environ = {"TASKTRAIL_FOLD_MS": "30", "TASKTRAIL_NATS_URL": "nats://ana:pa@ss@h:1,tls://t0ken@k:2,nats://l:3"}
    found = effective(environ, path, host="::1")
    shown = text(found)
    for line in (
        f"port = 1  # {path}:2",
        "fold_ms = 30  # environment",
        'host = "::1"  # command line',
        'sha256 = "01234567…"  # ' + f"{path}:6",
        'client_id = ""  # default',
        'nats_url = "nats://ana:***@h:1,tls://***@k:2,nats://l:3"  # environment',
        "# nats_server: not set  # default",
    ):
        assert line in shown.splitlines()
    document = configuration(found)
    assert document.service | {"data": ""} == tomllib.loads(shown)["service"] | {
        "data": "",
        "nats_credentials": None,
        "nats_server": None,
    }
    assert (document.file, document.origin["port"]) == (str(path), f"{path}:2")
    for secret in (DIGEST, "pa@ss", "t0ken"):
        assert secret not in shown
        assert secret not in repr(document)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("nats://h", "nats://h"),
        ("nats://h,nats://u:p@h", "nats://h,nats://u:***@h"),
        ("nats://u:a/b,c@h", "nats://u:***@h"),
    ],
)
def test_no_address_is_shown_with_its_password(url: str, shown: str) -> None:
    """Whatever characters the password has."""
    assert without_passwords(url) == shown


def test_a_tool_rule_may_grant_less_than_the_service(tmp_path: Path) -> None:
    """Its default is capped where it is granted, not refused where it is configured."""
    assert problems(tmp_path, f"[[tools]]\nttl_max_ms = 1000\n[service]\nttl_max_ms = {DAY_MS}\n") == []


VKEY = "witness.example+4147b5f8+BMr5+QaxapHLAWDFCr2si9bbmig/qXUfmAHvmRVUtGqK"


def test_copies_and_witnesses_are_read_and_shown_without_passwords(tmp_path: Path) -> None:
    """A directory is relative to the file, an address stays as it is; `[[tlog.witnesses]]` are tables of their own."""
    path = tmp_path / "tasktrail.toml"
    witness = f'[[tlog.witnesses]]\nurl = "http://witness:8430"\nvkey = "{VKEY}"\n'
    path.write_text(f'[tlog]\ncopies = ["kept", "nats://ana:secret@h:4222/KEPT"]\nnats_credentials = "c.nk"\n{witness}')
    found = effective({}, path)
    assert found.settings.tlog == Tlog(
        copies=(str(tmp_path / "kept"), "nats://ana:secret@h:4222/KEPT"),
        nats_credentials=tmp_path / "c.nk",
        witnesses=(Witness(url="http://witness:8430", vkey=VKEY),),
    )
    shown = text(found)
    assert "secret" not in shown
    assert tomllib.loads(shown)["tlog"]["copies"] == [str(tmp_path / "kept"), "nats://ana:***@h:4222/KEPT"]
    assert tomllib.loads(shown)["tlog"]["witnesses"] == [{"url": "http://witness:8430", "vkey": VKEY}]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('copies = ["nats://h:4222"]', "2: tlog.copies[0]: is no place for copies; give a directory, or nats://"),
        ('copies = ["https://h/S"]', "2: tlog.copies[0]: is no place for copies"),
        ('copies = ["a", "a"]', "2: tlog.copies[1]: is the same as tlog.copies[0]"),
        ("interval_ms = 10", "2: tlog.interval_ms: 10 is less than 1000 (1 s); raise it"),
        ('[[tlog.witnesses]]\nurl = "w"\nvkey = "VKEY"', "3: tlog.witnesses[0].url: is no address to ask"),
        ('[[tlog.witnesses]]\nurl = "http://w"\nvkey = "w+1+2"', "4: tlog.witnesses[0].vkey: is no witness's"),
        ('[[tlog.witnesses]]\nurl = "http://w"\nvkey = "xVKEY"', "4: tlog.witnesses[0].vkey: is no witness's"),
    ],
)
def test_places_and_keys_of_checkpoints_that_cannot_be_are_told(tmp_path: Path, said: str, told: str) -> None:
    """By line and remedy, before anything is started."""
    assert only(tmp_path, f"[tlog]\n{said.replace('VKEY', VKEY)}\n").startswith(f"tasktrail.toml:{told}")
