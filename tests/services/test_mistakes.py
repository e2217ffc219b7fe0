"""What a responder types wrong gets one plain line: what is wrong, what may be, and nothing of how it is checked.

Source: docs/cli.md; issue "Forensics": a person who has never seen tasktrail must get on in minutes.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import duckdb
import msgspec
import pytest
from tests.services.asked_place import Place, asked_place, run
from tests.services.scene import keep, play

from tasktrail.projections.audit import asking
from tasktrail.services import orders, querying, terminal_service
from tasktrail.services.access.claims import digest
from tasktrail.services.bundle_orders import BundleOrder
from tasktrail.services.exports import ExportOrder, sweep
from tasktrail.services.mistakes import mistake
from tasktrail.services.operators import Asker
from tasktrail.services.querying import Querying
from tasktrail.services.questions import QueryStopped, Question
from tasktrail.services.service import Service
from tasktrail.services.settings import load
from tasktrail.testing.service import tasktrail, wait_for

WHY = ("--reason", "an incident")
NO_TEXT = "caf\udce9"
"""The argument b'caf\\xe9' as Python gives it, which is no UTF-8."""
FOR_EVER = "SELECT count(*) FROM range(10000000000) AS a, range(100000) AS b"
LEAKS = ("`", "regex", "Errno", "Value error", "enum", "Traceback", "<", "$.")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("mistakes")
    with asked_place(folder) as one:
        yield one


@pytest.mark.parametrize(
    ("kind", "members", "said"),
    [
        (ExportOrder, {"format": "xml"}, "--format is 'xml'; it can be cloudevents, csv, jsonl"),
        (
            ExportOrder,
            {"format": "csv", "since": "yesterday"},
            "--since is 'yesterday', which is no time; write it like",
        ),
        (ExportOrder, {"format": "csv", "tenant": "x" * 300}, "--tenant takes at most 256 characters, not 300"),
        (ExportOrder, {"format": "csv", "from_seq": 0}, "--from-seq is 0; it can be at least 1"),
        (orders.LiftOrder, {"revocation": "r", "reason": "x"}, "--reason takes at least 3 characters, not 1; say why"),
        (orders.CancelOrder, {"tasks": (), "reason": "why"}, "TASKS takes at least 1 of them, not 0"),
        (orders.RevokeOrder, {"kind": "token", "token_hash": "nope", "reason": "why"}, "--hash is not the base64url"),
        (
            orders.GrantOrder,
            {"task": "t", "rights": ("get", "fly"), "reason": "why"},
            "--right is 'fly'; it can be cancel, get, subscribe, update",
        ),
        (orders.PolicyOrder, {"text": "x", "version": "a b", "reason": "why"}, "--version is not a name of at most 64"),
        (BundleOrder, {"kind": "task", "reason": "why", "holding": (0,)}, "--holding is 0; it can be at least 1"),
    ],
)
def test_what_is_wrong_with_an_order_is_told_in_words(
    kind: type[msgspec.Struct], members: dict[str, object], said: str
) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(members, kind)
    told = mistake(caught.value, kind, members)
    assert told.startswith(said)
    assert not [one for one in LEAKS if one in told]


def test_a_token_that_is_too_long_is_not_repeated() -> None:
    members: dict[str, object] = {"kind": "token", "token": "s3cret" * 4_000, "reason": "why"}
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(members, orders.RevokeOrder)
    assert mistake(caught.value, orders.RevokeOrder, members) == "--token takes at most 16384 characters, not 24000"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("revoke", "token", "--hash", "nope", *WHY), 2, "--hash is not the base64url SHA-256 of a token: 43 "),
        (("revoke", "client", "x", "--reason", "x"), 2, "--reason takes at least 3 characters, not 1"),
        (("sql", "SELECT 1", "--format", "parquet"), 2, "--format is 'parquet'; it can be table, json, jsonl, csv"),
        (
            ("sql", "SELECT 1", "--tenant", "nosuch"),
            1,
            "nothing of a tenant 'nosuch' is on the trail; there are 'defau",
        ),
        (("sql", FOR_EVER, "--timeout", "0.2"), 2, "ended after 0.2 s; ask for less, or give it more, 10 s at most"),
        (("tasks", "--status", "nosuch"), 2, "--status is 'nosuch'; it can be working, input_required, completed, "),
        (("grant", "give", "x", "--right", "get", "--mode", "y", *WHY), 2, "--mode is 'y'; it can be exact, "),
        (("replay", "play", "--from", "20", "--to", "10"), 2, "nothing lies between: --to 10 is before --from 20"),
        (("replay", "play", "--from", "2026-02-02", "--to", "2026-01-01"), 2, "--to 2026-01-01 is before --from"),
        (("archive", "--out", __file__), 2, "is a file, and an archive is a folder of several"),
        (("archive", "--out", "x", "--from", "9", "--to", "3"), 2, "--to 3 is before --from 9"),
        (
            ("query", "gaps", "--columns", "gap,nosuch"),
            2,
            "'nosuch' is no column of this answer; there are stream_seq",
        ),
        (("query", "gaps", "gap=foo"), 2, "gap is 'foo'; it can be hole, rejected, said, said_rejected"),
        (("query", "lapsed_handles", "standing=x"), 2, "standing is 'x'; it can be lapsed, revoked"),
        (("query", "responders", "type=Queryrun"), 2, "it can be QueryRun, BundleExported, PayloadUnsealed"),
        (("query", "gaps", "--columns", "gap,gap"), 2, "'gap' is named twice"),
        (("verify", "--key", "nosuch"), 2, "nosuch is neither a verifier key nor a file with some"),
        (
            ("replay", "rebuild", "--bundle", "none.tar", "--into", "x"),
            2,
            "the bundle none.tar cannot be read: No such",
        ),
    ],
)
def test_a_wrong_command_is_told_in_one_plain_line(
    arguments: tuple[str, ...], code: int, said: str, place: Place
) -> None:
    ran = place.run(*arguments)
    assert (ran.code, ran.out) == (code, ""), ran
    assert said in ran.err
    assert not [one for one in LEAKS if one in ran.err and one != "<"], ran.err
    assert ran.err.splitlines()[-1].startswith("tasktrail: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("timeline", NO_TEXT),
        ("tasks", "--sub", NO_TEXT),
        ("tasks", "--url", f"http://{NO_TEXT}"),
        ("tasks", "--url", NO_TEXT),
        ("handles", "--sub", NO_TEXT),
        ("revoke", "client", NO_TEXT, *WHY),
        ("query", "by_principal", f"sub={NO_TEXT}"),
        ("query", "by_principal", "sub=x", f"tenant={NO_TEXT}"),
        ("sql", f"SELECT '{NO_TEXT}'"),
        ("sql", "SELECT 1", "--tenant", NO_TEXT),
        ("export", "--format", "csv", "--out", "never.csv", "--tenant", NO_TEXT),
        ("bundle", "export", "--task", "x", "--out", "never.tar", "--reason", NO_TEXT),
    ],
)
def test_an_argument_that_is_no_text_is_refused_whether_a_service_runs_or_not(
    arguments: tuple[str, ...], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = keep(play(), tmp_path)
    for ran in (place.run(*arguments), run(*arguments, "--data", str(data))):
        assert ran.code in {1, 2, 3}, ran
        assert (ran.out, ran.err != "") == ("", True)
    assert [one.name for one in tmp_path.iterdir()] == [data.name], "a file was left"


def test_nothing_to_cancel_is_no_failure(place: Place) -> None:
    """`handles --refs | cancel -`, where no handle matched."""
    ran = place.run("cancel", "-", *WHY, said="")
    assert (ran.code, ran.out, ran.err) == (0, "", "tasktrail: nothing to cancel: standard input names no task\n")
    assert place.run("cancel", "-", *WHY, "--json").out == "[]\n"


def test_who_revokes_a_name_that_opens_nothing_is_told_how_to_see_that_it_is_the_right_one(place: Place) -> None:
    ran = place.run("revoke", "client", "mispelt", *WHY)
    assert (ran.code, "0 handles are concerned" in ran.out) == (0, True)
    assert "`tasktrail query by_client client_id=…` shows whether the trail has the name" in ran.err


def test_who_placed_a_hold_is_told_that_it_takes_another_to_release_it(place: Place) -> None:
    """The order is right and is refused: exit code 1, docs/cli.md."""
    held = place.run("hold", "place", place.ben, *WHY, "--json").json()
    ran = place.run("hold", "release", place.ben, held["id"], *WHY)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "tasktrail: a hold takes two people: responder placed this one, so another operator must release it; "
        "the refusal is on record\n"
    )


def test_a_timeline_shows_the_ids_that_a_decision_is_explained_by(place: Place) -> None:
    steps = place.run("timeline", place.ana, "--json").json()["steps"]
    decided = next(step["entry_id"] for step in steps if step["type"] == "TaskCreated")
    shown = place.run("timeline", place.ana, "--ids", width=200).out
    assert f"· entry {decided}" in shown
    assert decided not in place.run("timeline", place.ana, width=200).out
    assert place.run("policy", "explain", decided).code == 0


def test_an_answer_has_the_columns_that_were_asked_for_in_their_order(place: Place) -> None:
    ran = place.run("query", "by_principal", "sub=ana", "--columns", "type, stream_seq", "--format", "csv")
    lines = ran.out.splitlines()
    assert (ran.code, lines[0], len(lines) > 2) == (0, '"type","stream_seq"', True)
    assert {line.count(",") for line in lines} == {1}


def test_a_table_wider_than_the_terminal_is_shown_record_by_record(place: Place) -> None:
    statement = "SELECT 1 AS one, repeat('x', 70) AS two, repeat('y', 70) AS three, NULL AS four"
    narrow, wide = (place.run("sql", statement, width=width).out for width in (80, 300))
    assert [line.split()[0] for line in narrow.splitlines() if line] == ["one", "two", "three"]
    assert (len(wide.splitlines()), wide.split()[:4]) == (2, ["one", "two", "three", "four"])


def test_an_archive_says_nothing_but_what_it_did(place: Place, tmp_path: Path) -> None:
    ran = place.run("archive", "--out", str(tmp_path / "archive"))
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--key", "nosuch"), "--key nosuch is neither a public key, NAME+HASH+KEY, nor a file with one"),
        (("--witness", "nosuch"), "--witness nosuch is neither a public key"),
        (("--checkpoint", "."), ". is a directory; --checkpoint names a file with one checkpoint"),
        (("--checkpoint", "nosuch"), "nosuch is not there; --checkpoint names"),
        ((), "none.tar is not there; FILE names a bundle"),
    ],
)
def test_what_a_bundle_is_to_be_checked_with_is_looked_at_first(arguments: tuple[str, ...], said: str) -> None:
    ran = run("bundle", "verify", "none.tar", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"tasktrail: {said}")


def test_a_place_where_no_service_ever_ran_is_not_asked_for_its_key() -> None:
    ran = run("verify", "--data", "/nonexistent")
    assert (ran.code, ran.err) == (
        2,
        "tasktrail: no tasktrail data in /nonexistent; name the data directory of the service with --data\n",
    )


def test_a_misspelt_tenant_of_a_stopped_service_is_refused_too(tmp_path: Path) -> None:
    ran = run("sql", "SELECT 1", "--tenant", "nosuch", "--data", str(keep(play(), tmp_path)))
    assert (ran.code, ran.out) == (1, "")
    assert "nothing of a tenant 'nosuch' is on the trail; there are '" in ran.err


def test_the_copy_that_a_statement_reads_is_removed_when_it_is_told_to_end(tmp_path: Path) -> None:
    """SIGTERM, as a supervisor or `timeout` sends it; the copy may hold the whole trail."""
    data, scratch = keep(play(), tmp_path), tmp_path / "scratch"
    scratch.mkdir()
    copies = scratch.glob
    running = subprocess.Popen(
        [tasktrail(), "sql", FOR_EVER, "--data", data],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with running:
        wait_for("the copy", lambda: list(copies("tasktrail-sql-*/trail.duckdb")), within_s=60)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 128 + signal.SIGTERM
    assert list(copies("*")) == []


def test_what_a_killed_export_left_is_swept(tmp_path: Path) -> None:
    left, other = tmp_path / ".export-dead", tmp_path / "keys"
    for folder in (left, other):
        folder.mkdir()
        (folder / "export.parquet").write_bytes(b"half")
    sweep(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["keys"]


async def test_a_query_that_takes_too_long_is_ended_and_recorded_and_the_next_one_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def for_ever(cursor: duckdb.DuckDBPyConnection, *_: object, **__: object) -> None:
        cursor.execute(FOR_EVER)

    service = Service(load({}, data=tmp_path / "data"))
    await service.start()
    try:
        one, asker = Querying(service, within_s=0.2), Asker(token_hash=digest("x"), address="203.0.113.5")
        with monkeypatch.context() as patched:
            patched.setattr(asking, "ask", for_ever)
            several = [one.ask("gaps", Question(), asker) for _ in range(querying.AT_ONCE + 1)]
            ended = await asyncio.gather(*several, return_exceptions=True)
        assert [type(error) for error in ended] == [QueryStopped] * len(several), ended
        assert "gaps was ended after 0.2 s; ask for less" in str(ended[0])
        answer = await Querying(service).ask("responders", Question(), asker)
        told = [("ended: time" in str(row), "gaps" in row) for row in answer.rows]
        assert told == [(True, True)] * len(several)
    finally:
        await service.stop()


def test_a_word_that_is_one_of_a_few_is_given_back() -> None:
    assert terminal_service.one_of("--mode", "exact", ("exact", "user")) == "exact"
