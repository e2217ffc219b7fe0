"""The responder token and the file that says where the service runs."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tasktrail.services import responder
from tasktrail.services.responder import ResponderError, Running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "trail"
    responder.prepare(made)
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_first_start_makes_a_token_that_only_the_owner_can_read(data: Path) -> None:
    token = responder.open_token(data)
    assert token.startswith("ttr_")
    assert len(token) == len("ttr_") + 43  # 32 bytes, base64url
    assert mode(data) == 0o700
    assert mode(data / "responder.token") == 0o600
    assert [path.name for path in data.iterdir()] == ["responder.token"]


def test_later_starts_and_the_command_line_find_the_same_token(data: Path) -> None:
    token = responder.open_token(data)
    assert responder.open_token(data) == token
    assert responder.read_token(data) == token


def test_mcp_servers_have_a_token_of_their_own(data: Path) -> None:
    """docs/http.md: neither token's file can hold the other's."""
    token = responder.open_token(data, responder.SERVER_TOKEN_FILE)
    assert token.startswith("tts_")
    assert token != responder.open_token(data)
    assert mode(data / "server.token") == 0o600
    (data / "server.token").write_text((data / "responder.token").read_text())
    with pytest.raises(ResponderError, match="holds no server token"):
        responder.read_token(data, responder.SERVER_TOKEN_FILE)


def test_starts_at_the_same_time_agree_on_one_token(data: Path) -> None:
    """The file appears whole, once: a loser of the race reads the winner's."""
    code = (
        "import pathlib, sys; from tasktrail.services import responder; "
        "print(responder.open_token(pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(data)]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    tokens = {start.communicate(timeout=60)[0] for start in starts}
    assert tokens == {responder.read_token(data) + "\n"}


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620])
def test_a_token_open_to_others_is_refused_with_the_remedy(data: Path, bits: int) -> None:
    responder.open_token(data)
    (data / "responder.token").chmod(bits)
    with pytest.raises(ResponderError, match=f"mode {bits:o}.*chmod 600 .*responder.token"):
        responder.open_token(data)


def test_a_link_in_the_tokens_place_is_refused(data: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "other"
    elsewhere.write_text("ttr_" + "a" * 43)
    elsewhere.chmod(0o600)
    (data / "responder.token").symlink_to(elsewhere)
    with pytest.raises(ResponderError, match="cannot read"):
        responder.open_token(data)


@pytest.mark.parametrize("content", ["", "ttr_short", "x" * 47, "ttr_" + "é" * 43])
def test_a_file_that_holds_no_token_is_refused_without_quoting_it(data: Path, content: str) -> None:
    path = data / "responder.token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ResponderError, match="holds no responder token; remove it") as caught:
        responder.read_token(data)
    assert not content or content not in caught.value.message


def test_a_missing_token_says_how_to_start_the_service(data: Path) -> None:
    with pytest.raises(ResponderError, match=f"start the service with: tasktrail up --data {data}"):
        responder.read_token(data)


def test_an_empty_directory_is_closed_to_others_and_a_full_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "trail"
    folder.mkdir(mode=0o755)
    responder.prepare(folder)
    assert mode(folder) == 0o700
    (folder / "something").touch()
    folder.chmod(0o755)
    with pytest.raises(ResponderError, match=f"mode 755.*chmod 700 {folder}"):
        responder.prepare(folder)


def test_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trail").touch()
    with pytest.raises(ResponderError, match="cannot be the data directory"):
        responder.prepare(tmp_path / "trail")


def test_the_command_line_finds_a_running_service_and_only_a_running_one(data: Path) -> None:
    assert responder.find(data) is None
    here = Running(url="http://127.0.0.1:1", pid=os.getpid(), started_at="2026-11-22T10:00:00.000Z")
    responder.publish(data, here)
    assert responder.find(data) == here
    assert mode(data / "service.json") == 0o600
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=60)
    responder.publish(data, Running(url=here.url, pid=ended.pid, started_at=here.started_at))
    assert responder.find(data) is None
    responder.withdraw(data)
    responder.withdraw(data)
    assert list(data.iterdir()) == []


def test_a_malformed_service_file_is_refused(data: Path) -> None:
    path = data / "service.json"
    path.write_text('{"url": "http://127.0.0.1:1", "pid": 0, "started_at": ""}')
    path.chmod(0o600)
    with pytest.raises(ResponderError, match=r"malformed.*pid.*restart the service"):
        responder.find(data)
