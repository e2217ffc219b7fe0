"""Settings: types, ranges, names. Source: issue "main job", design section 4 (`settings.py`)."""

from pathlib import Path

import msgspec
import pytest

from tasktrail.events.errors import InvalidRequest
from tasktrail.services.settings import DAY_MS, DESCRIBED, ENV_PREFIX, MIB, MINUTE_MS, Settings, effective, load


def test_every_setting_is_described_and_none_that_is_not_one() -> None:
    """Style 13: every setting is documented or a test fails."""
    assert DESCRIBED.keys() == set(Settings.__struct_fields__)
    assert all(DESCRIBED.values())


def test_the_defaults_are_those_of_the_issue() -> None:
    """`tasktrail up` on 127.0.0.1:8420, data in `.tasktrail`, an embedded broker."""
    settings = load({})
    assert (settings.host, settings.port, settings.embedded) == ("127.0.0.1", 8420, True)
    assert settings.data == Path.cwd() / ".tasktrail"
    assert (settings.ttl_default_ms, settings.ttl_max_ms) == (60 * MINUTE_MS, DAY_MS)
    assert (settings.answer_within_ms, settings.resolve_for_ms) == (1_500, 10_000)
    assert (settings.inline_max_bytes, settings.payload_max_bytes) == (32 * 1024, 16 * MIB)
    assert settings.fold_ms <= 1_000, "promise 1: on the trail within a second"


def test_the_command_line_wins_over_the_environment_and_that_over_the_default() -> None:
    """What was not given (None) does not count."""
    environ = {"TASKTRAIL_PORT": "1", "TASKTRAIL_HOST": "0.0.0.0", "PORT": "9"}  # noqa: S104 - a value to read
    settings = load(environ, port=2, host=None, fold_ms=None)
    assert (settings.port, settings.host, settings.fold_ms) == (2, "0.0.0.0", 500)  # noqa: S104 - as above


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("data", "/x/../y", Path("/x/../y")),
        ("nats_url", "nats://a:1,nats://b:2", "nats://a:1,nats://b:2"),
        ("nats_credentials", "/creds", Path("/creds")),
        ("replicas", "3", 3),
        ("tenants", '{"https://id.example": "acme"}', {"https://id.example": "acme"}),
        ("anonymous", "false", False),
        ("anonymous", "0", False),
        ("ttl_max_ms", "86400001", 86_400_001),
        ("cancel_grace_ms", "0", 0),
    ],
)
def test_each_kind_of_value_is_read_from_the_environment(name: str, text: str, value: object) -> None:
    """The variable is the upper-case name behind the prefix."""
    assert getattr(load({ENV_PREFIX + name.upper(): text}), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "70000"),
        ("port", "-1"),
        ("port", "http"),
        ("replicas", "0"),
        ("fold_ms", "5000"),
        ("poll_interval_ms", "1"),
        ("ttl_default_ms", "0"),
        ("ttl_max_ms", "-5"),
        ("answer_within_ms", "1e9"),
        ("payload_max_bytes", str(17 * MIB)),
        ("inline_max_bytes", "nan"),
        ("anonymous", "perhaps"),
        ("tenants", '{"a": 1}'),
        ("tenants", "acme"),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(name: str, text: str) -> None:
    """Module docstring: the message names the variable and the range."""
    with pytest.raises(InvalidRequest) as caught:
        load({ENV_PREFIX + name.upper(): text})
    assert ENV_PREFIX + name.upper() in caught.value.message


def test_a_default_beyond_the_maximum_is_refused() -> None:
    """Two settings that contradict each other."""
    with pytest.raises(InvalidRequest, match=r"ttl_default_ms \(3600000\) exceeds ttl_max_ms \(1000\)"):
        load({}, ttl_max_ms=1_000)


def test_paths_are_absolute_and_home_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A service may change its directory; its data stay."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load({}, data=Path("~/d")).data == tmp_path / "d"
    assert load({"TASKTRAIL_DATA": "d"}).data == tmp_path / "d"


def test_an_external_broker_is_not_embedded() -> None:
    """`--nats URL` uses an external server instead."""
    assert not load({}, nats_url="nats://127.0.0.1:4222").embedded


def test_settings_do_not_change_while_they_are_used() -> None:
    """Frozen."""
    with pytest.raises(AttributeError):
        Settings().port = 1  # type: ignore[misc]  # that is the point
    assert msgspec.structs.replace(Settings(), port=1).port == 1


def test_the_environment_wins_over_the_file_and_that_over_the_default(tmp_path: Path) -> None:
    """Issue 3: command line, environment, file, default; the file is named by either of the first two."""
    path = tmp_path / "tasktrail.toml"
    path.write_text("[service]\nport = 1\nfold_ms = 20\ncancel_grace_ms = 3\n")
    other = tmp_path / "other.toml"
    other.write_text("[service]\nport = 7\n")
    environ = {"TASKTRAIL_CONFIG": str(path), "TASKTRAIL_FOLD_MS": "30", "TASKTRAIL_PORT": "2"}
    found = effective(environ, port=3)
    settings = found.settings
    assert (settings.port, settings.fold_ms, settings.cancel_grace_ms, settings.replicas) == (3, 30, 3, 1)
    origin = [found.origin[name] for name in ("port", "fold_ms", "cancel_grace_ms", "replicas")]
    assert origin == ["command line", "environment", f"{path}:4", "default"]
    assert load({"TASKTRAIL_CONFIG": str(path)}, config=other).port == 7


def test_a_table_cannot_be_set_by_the_environment() -> None:
    """Tables are the file's."""
    with pytest.raises(InvalidRequest, match="TASKTRAIL_ISSUERS: issuers can be set in the configuration file only"):
        load({"TASKTRAIL_ISSUERS": "[]"})
    with pytest.raises(InvalidRequest, match="TASKTRAIL_CONFG is no setting; did you mean TASKTRAIL_CONFIG"):
        load({"TASKTRAIL_CONFG": "x"})


def test_a_problem_is_told_where_it_stands(tmp_path: Path) -> None:
    """A value of the environment is no problem of the file's."""
    path = tmp_path / "tasktrail.toml"
    path.write_text("[service]\nttl_default_ms = 5000\n")
    with pytest.raises(InvalidRequest, match=r"tasktrail\.toml:2: ttl_default_ms: ttl_default_ms \(5000\) exceeds"):
        load({"TASKTRAIL_TTL_MAX_MS": "4000"}, config=path)
    with pytest.raises(InvalidRequest, match=r"^ttl_default_ms: ttl_default_ms \(6000\) exceeds"):
        load({"TASKTRAIL_TTL_MAX_MS": "4000", "TASKTRAIL_TTL_DEFAULT_MS": "6000"}, config=path)
