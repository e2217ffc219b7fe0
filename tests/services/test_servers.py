"""Which MCP server a bearer token speaks for. Source: docs/http.md, docs/configuration.md (`[[servers]]`)."""

import hashlib

import pytest

from tasktrail.events.errors import InvalidRequest
from tasktrail.services.configuration import McpServer
from tasktrail.services.servers import NAME_MAX, AnotherServer, Servers, UnknownToken

pytestmark = pytest.mark.requirement("O2")


def server(name: str, token: str = "") -> McpServer:
    return McpServer(name=name, sha256=hashlib.sha256(token.encode()).hexdigest() if token else "")


SERVERS = Servers([server("batch-7", "seven"), server("batch-8"), server("batch-*", "batches"), server("reports", "r")])


@pytest.mark.parametrize(
    ("token", "named", "speaks"),
    [
        ("seven", "", "batch-7"),
        ("seven", "batch-7", "batch-7"),
        ("batches", "batch-9", "batch-9"),
        ("r", "", "reports"),
    ],
)
def test_a_token_speaks_for_the_names_whose_first_entry_is_its_own(token: str, named: str, speaks: str) -> None:
    assert SERVERS.speaking(token, named) == speaks


@pytest.mark.parametrize(
    ("token", "named", "refused"),
    [
        ("batches", "batch-7", AnotherServer),
        ("batches", "batch-8", AnotherServer),
        ("batches", "reports", AnotherServer),
        ("batches", "elsewhere", AnotherServer),
        ("seven", "batch-9", AnotherServer),
        ("batches", "", InvalidRequest),
        ("batches", "batch-" + "x" * NAME_MAX, InvalidRequest),
        ("batches", "batch-\n", InvalidRequest),
        ("", "reports", UnknownToken),
        ("R", "reports", UnknownToken),
    ],
)
def test_a_token_speaks_for_no_other(token: str, named: str, refused: type[Exception]) -> None:
    with pytest.raises(refused):
        SERVERS.speaking(token, named)


def test_the_token_for_everyone_counts_only_while_no_server_is_configured() -> None:
    """One developer on one machine; whoever configures a server says thereby who may speak."""
    assert Servers(everyone="all").speaking("all", "any name") == "any name"
    assert Servers(everyone="all").whose("") is None
    with pytest.raises(UnknownToken):
        Servers([server("reports")], everyone="all").speaking("all", "reports")


def test_nobody_speaks_where_nobody_is_known() -> None:
    """Neither a configured server without a digest nor an empty token is a way in."""
    with pytest.raises(UnknownToken):
        Servers([server("reports")]).speaking("", "reports")
    with pytest.raises(UnknownToken):
        Servers().speaking("", "reports")
