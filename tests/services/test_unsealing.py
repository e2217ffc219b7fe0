"""Reading sealed payloads: who may, what is recorded first, and that shredding ends it.

Source: issue "Forensics"; feature R2; docs/responders.md.
"""

import asyncio
import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from tasktrail.services.access.policy import shipped
from tasktrail.services.terminal import app
from tasktrail.testing.feeding import Feeder, caller, creation
from tasktrail.testing.service import UpProcess, wait_for

UMA, OMAR = "uma-s-own-token", "omar-s-own-token"
WHY = ("--reason", "what did it disclose?")
HOSTILE = "\x1b]0;x\x07\u202e\u009b31m \x7f end"
LARGE = "word " * 60_000
"""Some 300 KB: more than travels in an entry, so it lies in the object bucket."""
TOKEN = "ghp" + "_" + base64.b32encode(hashlib.sha256(b"nobody").digest()).decode()[:36]
"""Of a form that is looked for, and of nobody."""
CLEAN: dict[str, str | None] = {name: None for name in os.environ if name.startswith(("TASKTRAIL_", "COLUMNS"))}
CONFIGURATION = f"""
[[servers]]
name = "*"
asserts = true

[[operators]]
name = "uma"
sha256 = "{hashlib.sha256(UMA.encode()).hexdigest()}"
rights = ["unseal"]

[[operators]]
name = "omar"
sha256 = "{hashlib.sha256(OMAR.encode()).hexdigest()}"
rights = ["read", "hold"]

[[tools]]
tool = "brief"
retention = {{ completed_ms = 0, payloads_ms = 0 }}
"""

pytestmark = pytest.mark.requirement("T8")


class Ran(NamedTuple):
    """What became of a run."""

    code: int
    out: str
    err: str

    def json(self) -> Any:  # noqa: ANN401 - any JSON
        assert self.code == 0, self
        return json.loads(self.out)


class Place(NamedTuple):
    """A running service, the id and reference of a completed task, and token files."""

    up: UpProcess
    task: str
    ref: str
    uma: str
    omar: str

    def run(self, *arguments: str, said: str = "") -> Ran:
        done = CliRunner().invoke(app, [*arguments, "--data", str(self.up.data)], input=said, env=CLEAN)
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return Ran(done.exit_code, done.stdout, done.stderr)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of this kind, oldest first, with the subject they stand on."""
        statement = (
            "SELECT v.payload, e.subject, e.sub FROM events v JOIN entries e USING (stream_seq) "
            "WHERE v.type = $kind ORDER BY stream_seq"
        )
        found = self.run("sql", statement, "--param", f"kind={kind}", "--format", "json").json()["rows"]
        return [json.loads(payload) | {"subject": subject, "by": by} for payload, subject, by in found]


def complete(up: UpProcess, command: str, tool: str, result: object, arguments: object = None) -> tuple[str, str]:
    """A completed task's id and reference."""

    async def made() -> tuple[str, str]:
        feeder = await Feeder.connect(up.adapter(), "reports")
        try:
            view = await feeder.settled("create", creation(caller("ana"), command, tool, arguments))
            ref = view["task_ref"]
            await feeder.settled("complete", {"task_ref": ref, "command_id": f"{command}-done", "result": result})
            return str(view["task_id"]), str(ref)
        finally:
            await feeder.close()

    return asyncio.run(made())


def token_file(folder: Path, token: str) -> str:
    file = folder / f"{token}.token"
    file.touch(mode=0o600)
    file.write_text(token + "\n")
    return str(file)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("unsealing")
    configuration = folder / "tasktrail.toml"
    configuration.write_text(CONFIGURATION)
    with UpProcess(folder / "data", "--config", str(configuration)) as up:
        result = {"content": [{"type": "text", "text": HOSTILE}], "large": LARGE, "token": TOKEN}
        task, ref = complete(up, "c-1", "report", result, {"account": "DE02"})
        yield Place(up, task, ref, token_file(folder, UMA), token_file(folder, OMAR))


def test_payloads_are_shown_to_who_may_with_the_entry_that_says_so(place: Place) -> None:
    """Inline ones and those of the object bucket; by reference or by id; flags of secrets told apart from the text."""
    ran = place.run("unseal", place.ref, "--as", place.uma, "--case", "INC-7", *WHY)
    shown = ran.json()
    by_name = {one["name"]: one for one in shown["payloads"]}
    assert list(by_name) == ["arguments", "result"]
    assert by_name["arguments"]["value"] == {"account": "DE02"}
    assert by_name["result"]["value"]["large"] == LARGE
    assert by_name["result"]["value"]["content"][0]["text"] == HOSTILE
    assert by_name["result"]["flags"]
    assert "result shows secrets: " in ran.err
    recorded = place.events("PayloadUnsealed")[-1]
    assert (recorded["by"], recorded["case_id"], recorded["reason"]) == ("uma", "INC-7", WHY[1])
    assert (recorded["task_ref"], recorded["payloads"]) == (place.ref, ["arguments", "result"])
    assert recorded["sha256"] == [by_name["arguments"]["sha256"], by_name["result"]["sha256"]]
    assert recorded["subject"] == "trail.1.control.default"
    look = "SELECT kind FROM entries WHERE entry_id = $entry"
    entry = place.run("sql", look, "--param", f"entry={shown['entry']}", "--format", "json")
    assert entry.json()["rows"] == [["control"]]
    assert place.run("unseal", "-", "--payload", "arguments", *WHY, said=place.task).json()["task_ref"] == place.ref


def test_nothing_that_is_printed_speaks_to_a_terminal(place: Place) -> None:
    out = place.run("unseal", place.ref, "--payload", "result", *WHY).out
    assert re.fullmatch(r"[\n\x20-\x7e]+", out)
    assert json.loads(out)["payloads"][0]["value"]["content"][0]["text"] == HOSTILE


def test_the_handle_is_shown_only_to_who_names_it(place: Place) -> None:
    """It opens the task for whoever holds it."""
    assert place.task not in place.run("unseal", place.ref, *WHY).out
    named = place.run("unseal", place.ref, "--payload", "handle", *WHY).json()
    assert [one["value"] for one in named["payloads"]] == [place.task]
    assert place.events("PayloadUnsealed")[-1]["payloads"] == ["handle"]


def test_who_has_not_the_right_or_the_policy_gets_nothing_and_is_on_record(place: Place) -> None:
    ran = place.run("unseal", place.ref, "--as", place.omar, *WHY)
    assert (ran.code, ran.out) == (2, "")
    assert "it needs `unseal`" in ran.err
    denied = place.events("AccessDenied")[-1]
    assert denied["method"] == "operator/unseal"
    forbid = '@id("nothing-of-reports")\nforbid (principal, action == Action::"unsealPayload", resource is Task)\n'
    policy = f'{shipped()}{forbid}when {{ resource.server == "reports" }};\n'
    place.up.order("policy", text=policy, version="sealed", reason="a test")
    try:
        ran = place.run("unseal", place.ref, "--as", place.uma, *WHY)
        assert (ran.code, ran.out) == (2, "")
        assert "nothing-of-reports" in ran.err
    finally:
        place.up.order("policy", text=shipped(), version="shipped-again", reason="a test")


def test_a_reason_is_needed_and_what_is_there_is_not_told_by_a_refusal(place: Place) -> None:
    before = len(place.events("PayloadUnsealed"))
    assert place.run("unseal", place.ref, "--reason", "x").code == 2
    assert place.run("unseal", place.ref).code == 2
    missing = place.run("unseal", place.ref, "--payload", "error", *WHY)
    assert (missing.code, missing.out) == (1, "")
    assert "has no payload 'error'" in missing.err
    assert "arguments" not in missing.err, "who may unseal need not be who may read the trail, which names them"
    assert place.run("unseal", "a" * 32, *WHY).code == 1
    assert place.run("unseal", place.ref, "--payload", "result", *WHY, "--url", "http://127.0.0.1:9").code == 3
    assert len(place.events("PayloadUnsealed")) == before


@pytest.mark.requirement("R2")
def test_once_shredded_nothing_can_be_shown_and_nothing_is_recorded_as_shown(place: Place) -> None:
    _, ref = complete(place.up, "c-2", "brief", {"text": LARGE})
    wait_for("the shredding", lambda: any(one["subject"].endswith(ref) for one in place.events("PayloadShredded")))
    before = len(place.events("PayloadUnsealed"))
    for names in ((), ("--payload", "handle")):
        ran = place.run("unseal", ref, *names, *WHY)
        assert (ran.code, ran.out) == (1, "")
        assert "nobody can read them any more" in ran.err
    status, answer = place.up.post("/api/v1/unseal", json.dumps({"task": ref, "reason": "a look"}).encode())
    assert (status, json.loads(answer)["reason"]) == (410, "shredded")
    assert len(place.events("PayloadUnsealed")) == before
