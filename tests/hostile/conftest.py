"""One running service for each module of hostile tests: it must be alive and right after every one of them."""

import threading
from collections.abc import AsyncIterator, Iterator

import duckdb
import psutil
import pytest
import pytest_asyncio

from tasktrail.testing.feeding import Feeder, asked, caller, creation
from tasktrail.testing.service import UpProcess

RSS_BYTES_MAX = 1_500 * 1024 * 1024
"""Two bodies of 16 MiB that are worked on at once take 30 times their size, the service itself 150 MiB."""

WATCH_S = 0.02
MANY = 1_000_000
"""So that what is wrong with a request is told, and not that there were too many."""


class Watched:
    """A running service, and the most memory that it held."""

    def __init__(self, up: UpProcess) -> None:
        self.up, self.pid = up, up.pid
        self.rss_bytes = 0
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()

    def _watch(self) -> None:
        process = psutil.Process(self.pid)
        while not self._ended.wait(WATCH_S):
            self.rss_bytes = max(self.rss_bytes, process.memory_info().rss)

    def end(self) -> None:
        """Watch no more."""
        self._ended.set()
        self._watching.join()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The module's service; at the end it is the same process, ready, within its memory, and stops cleanly."""
    place = tmp_path_factory.mktemp("hostile")
    (place / "tasktrail.toml").write_text(f"[limits]\nfailed_lookups_per_minute_per_principal = {MANY}\n")
    with UpProcess(place / "data", environment={"TASKTRAIL_CONFIG": str(place / "tasktrail.toml")}) as up:
        watching = Watched(up)
        try:
            yield watching
            up.wait_until_ready()
            assert up.pid == watching.pid
        finally:
            watching.end()
        assert watching.rss_bytes < RSS_BYTES_MAX, watching.rss_bytes
        up.wait_until_level()
        assert up.stop() == 0, up.output()
        assert "a request on" not in up.output(), up.output()  # commands.py says so of a fault nobody foresaw
        assert not rejected(up), rejected(up)[:5]


def rejected(up: UpProcess) -> list[tuple[object, ...]]:
    """What the audit store of a stopped service does not count among the entries: nothing that came in by an edge."""
    with duckdb.connect(up.data / "audit.duckdb", read_only=True) as store:
        return store.execute("SELECT stream_seq, subject, reason, detail FROM rejected").fetchall()


@pytest.fixture
def up(watched: Watched) -> Iterator[UpProcess]:
    """The module's service; before and after each test it is ready."""
    yield watched.up
    assert watched.up.get("/healthz", token=False)[0] == 200


@pytest_asyncio.fixture
async def feeder(up: UpProcess) -> AsyncIterator[Feeder]:
    """A connection of an adapter; at the end a task can be made and polled."""
    made = await Feeder.connect(up.adapter(), "hostile")
    try:
        yield made
        ana = caller("ana")
        task = await made.settled("create", creation(ana, f"sane-{made.sent}"))
        view = await made.settled("get", asked(ana, "tasks/get", task_id=task["task_id"]))
        assert view["status"] == "working"
    finally:
        await made.close()
