"""Checkpoints of a real service, with a copy and a real witness. Source: issue 4, docs/checkpoints.md."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest

from tasktrail.events.facts import GapFound, KeyActivated
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.merkle import leaf, root, verify_consistency
from tasktrail.projections.tlog.note import Checkpoint, Note, Verifier
from tasktrail.services.notary import FOLDER
from tasktrail.services.trail_reading import open_trail
from tasktrail.testing.feeding import Feeder, caller, creation
from tasktrail.testing.rebuild import Book
from tasktrail.testing.service import UpProcess, tasktrail, wait_for

pytestmark = pytest.mark.requirement("T2")

Json = dict[str, Any]


class WitnessProcess:
    """`tasktrail witness` in a process of its own; what it printed is in `told`."""

    def __init__(self, data: Path, *logs: str, port: int = 0) -> None:
        self._command = [str(tasktrail()), "witness", "--data", str(data), "--port", str(port)]
        self._command += [part for log in logs for part in ("--log", log)]
        self.told: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        while "log" not in self.told:
            word, _, rest = self._child.stdout.readline().partition(" ")
            assert word, f"it ended with exit code {self._child.wait()}"
            self.told[word] = rest.strip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.terminate()
        assert self._child.wait(30) == 0
        assert self._child.stdout is not None
        self._child.stdout.close()

    def configured(self) -> str:
        """As the service's configuration names it."""
        return f'[[tlog.witnesses]]\nurl = "{self.told["url"]}"\nvkey = "{self.told["vkey"]}"\n'


class House:
    """One data directory, its configuration and its service."""

    def __init__(self, folder: Path) -> None:
        self.data, self.copy = folder / "data", folder / "copy"
        self._config = folder / "tasktrail.toml"
        self.configure()

    def configure(self, *tables: str, copy: bool = False) -> None:
        places = f'copies = ["{self.copy}"]\n' if copy else ""
        self._config.write_text(f"[tlog]\n{places}" + "".join(tables), encoding="utf-8")

    def up(self) -> UpProcess:
        return UpProcess(self.data, "--config", str(self._config))

    @property
    def verifier(self) -> Verifier:
        return Verifier.of((self.data / FOLDER / "vkey").read_text(encoding="ascii").strip())

    async def entries(self, kind: type) -> list[Any]:
        """Events of this kind on the stopped service's trail."""
        book = Book()
        async with open_trail(self.data) as trail:
            await book.read(trail.nc)
        return [one for _, entry in book.entries.values() for one in entry.events if isinstance(one, kind)]

    async def leaves(self) -> list[bytes]:
        """The leaves of the stopped service's trail."""
        async with open_trail(self.data) as trail:
            return [leaf(one.body) async for batch in trail.messages() for one in batch]


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "copy").mkdir()
    return House(tmp_path)


async def feed(up: UpProcess, first: int, last: int) -> None:
    """Tasks, one entry each."""
    feeder = await Feeder.connect(up.adapter(), "reports")
    for n in range(first, last):
        await feeder.settled("create", creation(caller("ana"), f"c-{n}"))
    await feeder.close()


def log_of(up: UpProcess) -> Json:
    status, body = up.get("/api/v1/log")
    assert status == 200, body
    shown: Json = msgspec.json.decode(body)
    return shown


def waited(up: UpProcess, what: str, holds: Callable[[Json], object]) -> Json:
    """The log as shown, once this holds of it."""
    seen: list[Json] = []

    def look() -> bool:
        seen[:] = [log_of(up)]
        return bool(holds(seen[0]))

    try:
        wait_for(what, look, 60.0)
    except TimeoutError as error:
        message = f"{error}: {seen}\n{up.output()}"
        raise TimeoutError(message) from None
    return seen[0]


def covering(least: int) -> Callable[[Json], object]:
    return lambda shown: shown["checkpoint_size"] == shown["size"] >= least


def said(note: bytes, verifier: Verifier) -> Checkpoint:
    """What a checkpoint says, its signature verified."""
    parsed = Note.parse(note)
    assert parsed.signed_by(verifier)
    return Checkpoint.parse(parsed.text)


async def test_a_service_goes_on_with_one_tree_over_restarts_and_kills(house: House) -> None:
    """Checkpoints are consistent with each other and the trail; each is in the copy; the key is on the trail once."""
    house.configure(copy=True)
    with house.up() as up:
        await feed(up, 0, 5)
        first = waited(up, "a first checkpoint of all", covering(6))
        assert (first["state"], first["vkey"]) == ("signing", (house.data / FOLDER / "vkey").read_text().strip())
        assert first["copies"] == [{"name": str(house.copy), "agrees": True, "size": first["size"], "detail": ""}]
        await feed(up, 5, 10)
        up.kill()
        up.start()
        await feed(up, 10, 300)
        newest = waited(up, "a checkpoint of all", covering(302))
        status, note = up.get("/tlog/checkpoint")
        assert status == 200
        assert note.decode() == newest["checkpoint"]
        assert up.get(f"/tlog/checkpoints/{first['checkpoint_size']}")[1].decode() == first["checkpoint"]
        tile = up.get("/tlog/tile/0/000")[1]
        assert up.get("/tlog/tile/1/000.p/1")[1] == root([tile[at : at + 32] for at in range(0, len(tile), 32)])
        for path in ("/tlog/checkpoints/99999999", "/tlog/tile/0/001/../000", "/tlog/tile/9/000", "/tlog/tile/x"):
            assert up.get(path)[0] == 404
        assert up.get("/tlog/checkpoint", token=False)[0] == 401
        up.stop()
    leaves = await house.leaves()
    log = Log.open(house.data / FOLDER, read_only=True)
    sizes, newest_note = log.checkpoints(), log.checkpoint()
    assert newest_note is not None
    last = said(newest_note.encode(), house.verifier)
    assert (last.size, last.root) == (len(leaves), root(leaves))
    old = said(first["checkpoint"].encode(), house.verifier)
    assert verify_consistency(old.size, last.size, old.root, last.root, log.consistency(old.size, last.size))
    kept = sorted((house.copy / last.origin.replace("/", "-")).iterdir())
    assert {int(one.name) for one in kept} <= set(sizes)
    assert [said(one.read_bytes(), house.verifier).root for one in kept] == [
        root(leaves[: int(one.name)]) for one in kept
    ]
    log.close()
    activated = [one.purpose for one in await house.entries(KeyActivated)]
    assert sorted(activated) == ["checkpoint", "signing"]


async def test_a_trail_replaced_by_an_older_one_is_refused_by_the_copy_and_the_witness(
    house: House, tmp_path: Path
) -> None:
    """Issue 4: truncate and fork are found, by whoever kept something elsewhere; tasks go on meanwhile."""
    older = tmp_path / "older"
    with house.up() as up:
        await feed(up, 0, 5)
        vkey = waited(up, "a checkpoint", covering(6))["vkey"]
        up.stop()
    shutil.copytree(house.data, older)
    with WitnessProcess(tmp_path / "witness", vkey) as witness:
        house.configure(witness.configured(), copy=True)
        with house.up() as up:
            await feed(up, 5, 10)
            size = waited(up, "a checkpoint of all", covering(11))["size"]
            shown = waited(up, "a cosignature", lambda shown: shown["witnesses"][0]["cosigned_size"] >= size)
            assert shown["witnesses"][0]["state"] == "cosigns"
            for path in ("checkpoint", f"checkpoints/{size}"):
                cosigned = Note.parse(up.get(f"/tlog/{path}")[1])
                assert cosigned.signed_by(house.verifier)
                assert cosigned.cosigned_at(Verifier.of(witness.told["vkey"])), path
            assert log_of(up)["checkpoint"].encode() == cosigned.encode()
            up.stop()
        held = shown["copies"][0]["size"]
        shutil.rmtree(house.data)
        shutil.copytree(older, house.data)
        with house.up() as up:
            waited(up, "truncation", lambda shown: shown["state"] == "truncated")
            await feed(up, 100, 102)
            status, ready = up.get("/readyz", token=False)
            assert status == 503
            told = msgspec.json.decode(ready)["parts"]["notary"]["detail"]
            assert f"{house.copy} holds a checkpoint of {held} entries" in told
            await feed(up, 102, 120)
            up.stop()
        with house.up() as up:
            shown = waited(up, "the fork", lambda shown: shown["state"] == "forked")
            assert shown["checkpoint_size"] < held
            up.stop()
        house.configure(witness.configured())
        with house.up() as up:
            shown = waited(up, "a refusal", lambda shown: shown["witnesses"][0]["state"] == "refuses")
            assert shown["state"] == "signing"
            assert "does not find that our tree extends the one it cosigned" in shown["witnesses"][0]["detail"]
            assert "refuses" in up.output()
            up.stop()


async def test_a_lost_log_is_rebuilt_and_never_passes_for_an_old_one(house: House) -> None:
    """docs/checkpoints.md: with a copy it goes on where it agrees; with none, the loss itself is on the trail."""
    house.configure(copy=True)
    with house.up() as up:
        await feed(up, 0, 5)
        before = waited(up, "a checkpoint", covering(6))
        up.stop()
        shutil.rmtree(house.data / FOLDER)
        up.start()
        await feed(up, 5, 10)
        rebuilt = waited(up, "a checkpoint of all", covering(11))
        assert rebuilt["vkey"] == before["vkey"]
        assert rebuilt["copies"][0]["size"] == rebuilt["size"]
        assert "it agrees with a copy's checkpoint" in up.output()
        up.stop()
        assert await house.entries(GapFound) == []
        shutil.rmtree(house.data / FOLDER)
        house.configure()
        up.start()
        waited(up, "a checkpoint of all", covering(12))
        assert "all checkpoints were lost, and no copy holds any" in up.output()
        up.stop()
    gaps = await house.entries(GapFound)
    assert [one.what for one in gaps] == ["checkpoints of the trail before this entry"]
    (house.data / "keys" / "checkpoint-1.key").unlink()
    refused = house.up()
    assert refused.spawn().wait(60) == 3
    assert "restore your backup of the keys" in refused.output()
