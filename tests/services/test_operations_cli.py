"""The operators' commands against a real `tasktrail up`. Source: issue "Authority"; docs/cli.md."""

import asyncio
import contextlib
import hashlib
import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from tasktrail.services.access.policy import shipped
from tasktrail.services.terminal import app
from tasktrail.testing.feeding import Feeder, Refused, asked, caller, creation
from tasktrail.testing.service import UpProcess, tasktrail, wait_for

OMAR = "omar-s-own-token"
ANA, BEN, EVE, FAY = (caller(name, client_id=f"{name}-cli") for name in ("ana", "ben", "eve", "fay"))
WHY = ("--reason", "an incident")
SECRET = "a-bearer-token-nobody-may-see-4711"
CLEAN: dict[str, str | None] = {name: None for name in os.environ if name.startswith(("TASKTRAIL_", "COLUMNS"))}
CONFIGURATION = f"""
[[servers]]
name = "*"
asserts = true

[[operators]]
name = "omar"
sha256 = "{hashlib.sha256(OMAR.encode()).hexdigest()}"
rights = ["read", "hold"]
"""


class Ran(NamedTuple):
    """What became of a run."""

    code: int
    out: str
    err: str

    def json(self) -> Any:  # noqa: ANN401 - any JSON
        assert (self.code, self.err) == (0, ""), self
        return json.loads(self.out)


class Place(NamedTuple):
    """A running service."""

    up: UpProcess

    def run(self, *arguments: str, said: str = "") -> Ran:
        """A command on its data directory."""
        return run(*arguments, "--data", str(self.up.data), said=said)

    def request(self, action: str, said: dict[str, Any]) -> dict[str, Any]:
        """What an MCP server asks."""

        async def ask() -> dict[str, Any]:
            feeder = await Feeder.connect(self.up.adapter(), "reports")
            try:
                return await feeder.request(action, said)
            finally:
                await feeder.close()

        return asyncio.run(ask())

    def create(self, who: dict[str, Any], made: str) -> str:
        """A task's id."""
        return str(self.request("create", creation(who, made))["task_id"])

    def refused(self, who: dict[str, Any], task: str) -> str:
        """Why its creator may not get it; empty when it may."""
        try:
            self.request("get", asked(who, "tasks/get", task_id=task))
        except Refused as refused:
            return refused.reason
        return ""

    def handle(self, sub: str) -> Any:  # noqa: ANN401 - any JSON
        """The one handle of a subject, when the inventory has it."""
        [shown] = wait_for(f"{sub}'s handle", lambda: self.run("handles", "--sub", sub, "--json").json())
        return shown


def run(*arguments: str, said: str = "") -> Ran:
    result = CliRunner().invoke(app, list(arguments), said.encode(), prog_name="tasktrail", env=CLEAN)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("operations")
    configuration = folder / "tasktrail.toml"
    configuration.write_text(CONFIGURATION)
    with UpProcess(folder / "data", "--config", str(configuration)) as up:
        yield Place(up)


@pytest.fixture
def omar(tmp_path: Path) -> str:
    file = tmp_path / "omar.token"
    file.touch(mode=0o600)
    file.write_text(OMAR + "\n")
    return str(file)


@pytest.mark.requirement("A9")
def test_a_principal_is_revoked_listed_and_lifted(place: Place) -> None:
    task = place.create(ANA, "a-1")
    place.handle("ana")
    revoked = place.run("revoke", "principal", "--iss", ANA["iss"], "--sub", "ana", *WHY, "--json").json()
    assert place.refused(ANA, task) == "not_found"
    listed = place.run("revoke", "list")
    whom = "principal, 1 handle\n  iss https://id.example, sub ana\n  an incident\n"
    assert f"{revoked['revocation']}  {whom}" in listed.out
    assert wait_for("marked", lambda: place.run("handles", "--lapsed", "--sub", "ana", "--json").json())
    shown = place.run("handles", "--lapsed", "--sub", "ana")
    assert "AUTHORITY revoked; created" in shown.out
    assert "strong handle (160 bits)" in shown.out
    [ref] = place.run("handles", "--lapsed", "--sub", "ana", "--refs").out.split()
    assert ref == place.handle("ana")["task_ref"]
    lifted = place.run("lift", revoked["revocation"], *WHY)
    assert lifted == Ran(0, f"revocation {revoked['revocation']} does not hold any more\n", "")
    assert place.refused(ANA, task) == ""
    again = place.run("lift", revoked["revocation"], *WHY)
    assert (again.code, again.out) == (1, "")
    assert again.err.startswith("tasktrail: no revocation that holds has this id")


@pytest.mark.requirement("R4")
def test_a_token_is_revoked_from_standard_input(place: Place) -> None:
    ran = place.run("revoke", "token", *WHY, said=SECRET + "\n")
    assert ran.code == 0, ran
    assert SECRET not in ran.out + ran.err
    assert "no token" in place.run("revoke", "token", *WHY, said=" ").err
    assert "give one token" in place.run("revoke", "token", *WHY, said="two words").err
    place.run("revoke", "token", "--hash", "h" * 42 + "A", *WHY, "--json").json()
    short = place.run("revoke", "token", "--hash", "short", *WHY)
    assert (short.code, "--hash" in short.err, "token_hash" in short.err) == (2, True, False)
    unreasonable = place.run("revoke", "client", "x", "--reason", "")
    assert (unreasonable.code, "--reason" in unreasonable.err) == (2, True)
    mistaken = place.run("revoke", "token", "--jti", "j", *WHY)
    assert (mistaken.code, mistaken.out) == (2, "")
    assert "give token or token_hash or iss, jti; given: jti" in mistaken.err


@pytest.mark.requirement("A9")
def test_a_client_and_a_handle_are_revoked(place: Place) -> None:
    task = place.create(BEN, "b-1")
    place.handle("ben")
    revoked = place.run("revoke", "handle", "-", *WHY, "--case", "C-7", said=task)
    assert revoked.code == 0, revoked
    assert revoked.out.endswith(": accepted\n")
    assert task not in revoked.out
    assert place.refused(BEN, task) == "not_found"
    done = place.run("revoke", "client", "ben-cli", *WHY)
    assert done.out.startswith("revoked; ")
    with pytest.raises(Refused, match="caller-revoked"):
        place.create(BEN, "b-2")


@pytest.mark.requirement("M7")
def test_tasks_are_stopped_in_bulk_and_the_exit_code_says_whether_all_were(place: Place) -> None:
    place.create(EVE, "e-1")
    ref = place.handle("eve")["task_ref"]
    nobodys = "a" * 32
    ran = place.run("cancel", "-", *WHY, said=f"{ref}\n{nobodys}\n")
    assert ran.code == 1
    stopped, unknown = ran.out.splitlines()
    assert stopped.startswith(f"{ref}  accepted  ")
    assert unknown.startswith("the 2. task  no_such_task")
    entry = stopped.split()[-1]
    explained = wait_for("the audit store", lambda: ok(place.run("policy", "explain", entry)))
    assert "recorded  allow by operators-revoke of policy shipped-1" in explained
    assert "resource.creator_sub = eve" in explained
    assert place.run("policy", "explain", entry, "--today", "--json").json()["same"]


def ok(ran: Ran) -> str:
    """What it printed; empty when it failed."""
    return ran.out if ran.code == 0 else ""


@pytest.mark.requirement("R3")
def test_a_hold_takes_two_people(place: Place, omar: str) -> None:
    place.create(FAY, "f-1")
    ref = place.handle("fay")["task_ref"]
    held = place.run("hold", "place", ref, *WHY, "--case", "C-7", "--json").json()
    own = place.run("hold", "release", ref, held["id"], *WHY)
    assert own.code == 1
    assert "another operator must release it" in own.err
    assert place.run("hold", "release", ref, held["id"], *WHY, "--as", omar).out.startswith("released: ")
    gone = place.run("hold", "release", ref, held["id"], *WHY, "--as", omar)
    assert (gone.code, "no_such_hold" in gone.err) == (1, True)
    may_not = place.run("revoke", "client", "x", *WHY, "--as", omar)
    assert may_not.code == 2
    assert "operator omar may not do this: it needs `revoke`" in may_not.err


@pytest.mark.requirement("A1")
def test_a_grant_is_given_shown_and_withdrawn(place: Place) -> None:
    who = caller("gil", client_id="gil-cli")
    task = place.create(who, "g-1")
    ref = place.handle("gil")["task_ref"]
    grantee = ("--iss", ANA["iss"], "--sub", "hal", "--mode", "user", "--right", "get", "--right", "subscribe")
    until = ("--until", "2099-01-01T00:00:00Z")
    granted = place.run("grant", "give", ref, *grantee, *until, *WHY, "--json").json()
    hal = caller("hal", client_id="whatever")
    assert place.refused(hal, task) == ""
    what = f"granted ({granted['id']}) to hal at id.example"
    wait_for("the grant", lambda: what in ok(place.run("handles", "--sub", "gil")))
    shown = " ".join(place.run("handles", "--sub", "gil").out.split())
    assert "compared by user: get, subscribe until 2099-01-01T00:00:00.000Z" in shown
    assert place.run("grant", "withdraw", ref, granted["id"], *WHY).out.startswith("withdrawn: ")
    assert place.refused(hal, task) == "not_found"


@pytest.mark.requirement("P5")
def test_a_policy_is_checked_activated_and_shown(place: Place, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.cedar", tmp_path / "bad.cedar"
    good.write_text(shipped() + '\n@id("extra") forbid (principal, action == Action::"unsealPayload", resource);\n')
    bad.write_text("permit(")
    assert run("policy", "check", str(good)) == Ran(0, f"{good}: no problem found\n", "")
    ran = run("policy", "check", str(bad))
    assert (ran.code, ran.err) == (1, "")
    assert ran.out
    assert run("policy", "check", str(tmp_path / "none.cedar")).code == 2
    refused = place.run("policy", "activate", str(bad), "--version", "v2", *WHY)
    assert (refused.code, "nothing was activated" in refused.err) == (2, True)
    done = place.run("policy", "activate", str(good), "--version", "v2", *WHY)
    assert done.out.startswith("policy v2 (")
    now = place.run("policy", "show")
    assert (now.code, now.out) == (0, good.read_text())
    assert now.err.startswith("tasktrail: policy v2, SHA-256 ")


def test_a_policy_is_shown_to_a_terminal_without_what_would_steer_it(place: Place, tmp_path: Path) -> None:
    """Who may activate a policy does not thereby write to other operators' screens."""
    text = shipped() + "\n// \x1b[2J\u202e\ttwo words\n"
    file = tmp_path / "steering.cedar"
    file.write_text(text)
    assert place.run("policy", "activate", str(file), "--version", "v3", *WHY).code == 0
    assert place.run("policy", "show").out == text
    ours, theirs = pty.openpty()
    command = [str(tasktrail()), "policy", "show", "--data", str(place.up.data)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the other side is closed
            while piece := os.read(ours, 65_536):
                seen += piece
    os.close(ours)
    assert process.returncode == 0
    assert re.search(r"// \\x1b\[2J\\u202e\s+two words", seen.decode()), seen
    assert b"\x1b" not in seen


def test_what_is_wrong_with_a_command_is_one_line_and_an_exit_code(place: Place, tmp_path: Path, omar: str) -> None:
    """docs/cli.md: 1 not found, 2 a wrong command, directory or token, 3 the service cannot answer."""
    short = place.run("revoke", "client", "x", "--reason", "no")
    assert (short.code, short.out) == (2, "")
    assert "--reason" in short.err
    unknown = place.run("hold", "place", "a" * 32, *WHY)
    assert (unknown.code, "has this reference or id" in unknown.err) == (1, True)
    nowhere = run("revoke", "client", "x", *WHY, "--data", str(tmp_path))
    assert (nowhere.code, nowhere.out) == (3, "")
    assert "no service runs on" in nowhere.err
    Path(omar).chmod(0o644)
    assert "chmod 600" in place.run("revoke", "list", "--as", omar).err
    Path(omar).chmod(0o600)
    Path(omar).write_text("two words")
    assert "one word" in place.run("revoke", "list", "--as", omar).err
    Path(omar).write_text("nobody-s-token")
    assert "is no operator's of the service" in place.run("revoke", "list", "--as", omar).err
    assert place.run("revoke", "list", "--as", str(tmp_path / "none")).code == 2
    assert place.run("handles", "--sub", "nobody").err == "tasktrail: no handle matches\n"
