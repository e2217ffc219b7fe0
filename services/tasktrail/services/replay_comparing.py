"""The live projections compared with what the trail gives: every state of the bucket, every row of the audit store.

Guarantees: nothing is changed; a running service is compared as of where its bucket was, so that what comes in
meanwhile is no difference; what could not be compared is said, never passed over. The audit store of a running service
is compared in a copy that it lends (`snapshots.py`).

    async with open_trail(data) as trail:
        found = await compare(trail, data / "audit.duckdb")
        found.equal, found.parts[0].differences
"""

import contextlib
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC
from itertools import chain, islice
from pathlib import Path

import msgspec
from nats.aio.client import Client

from tasktrail.events.errors import TasktrailError
from tasktrail.events.subjects import TRAIL
from tasktrail.projections import current
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.errors import AuditStoreError, StoreBusy
from tasktrail.projections.audit.rows import ref_of
from tasktrail.projections.audit.store import AuditStore, Position
from tasktrail.projections.current import State
from tasktrail.projections.replay import Difference, Replay, state_differences, value_text
from tasktrail.projections.replay_rows import row_differences
from tasktrail.services import responder
from tasktrail.services.bucket_reading import read_bucket
from tasktrail.services.replaying import BATCH, ROWS_FILE, Told
from tasktrail.services.snapshots import Lent
from tasktrail.services.sources import Refused, open_service
from tasktrail.services.trail_reading import TrailReader

DIFFERENCES_MAX = 10_000


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One projection compared. `position`: up to where it was built; `compared`: how many states, or messages.

    `differences`: at most `DIFFERENCES_MAX`, and `more` says whether there are others. `not_compared`: why it was not,
    and what to do; empty when it was.
    """

    what: str
    position: int = 0
    compared: int = 0
    differences: tuple[Difference, ...] = ()
    more: bool = False
    not_compared: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The live projections against the trail up to `trail_seq`. `equal`: nothing that was compared differs."""

    trail_seq: int
    equal: bool
    parts: tuple[Part, ...]


async def compare(trail: TrailReader, audit: Path | str, told: Told = lambda _position, _last: None) -> Comparison:
    """The bucket of current states behind `trail`, and the audit store in the file `audit`, against the trail.

    `audit` is text when there is none that may be read: why not. A copy is made before `trail` is opened.

    Raises:
        Unavailable: the broker stopped answering.
    """
    bucket = await read_states(trail.nc, str(trail.created))
    trail = await TrailReader.of(trail.nc)  # as the bucket was read before, nothing in it is beyond this
    with tempfile.TemporaryDirectory(prefix="tasktrail-replay-") as scratch:
        states = _States(bucket, trail.last_seq)
        rows = _Rows(audit, Path(scratch) / ROWS_FILE, trail)
        with contextlib.closing(rows):
            async with aclosing(trail.messages(batch=BATCH)) as batches:
                async for messages in batches:
                    states.take(messages)
                    rows.take(messages)
                    told(messages[-1].stream_seq, trail.last_seq)
        parts = (states.part(), rows.part())
    return Comparison(trail_seq=trail.last_seq, equal=not any(one.differences for one in parts), parts=parts)


class _Asked(msgspec.Struct):
    """An order without members."""


@contextlib.contextmanager
def audit_file(data: Path, token_file: Path | None, case: str) -> Generator[Path | str]:
    """The audit store of a stopped service, or a copy which the running one lends; text that says why there is none.

    A copy is lent to the operator whose token is in `token_file` (None: the data directory's), which is recorded.

    Raises:
        Refused: this operator may not read the trail, or is none.
    """
    from tasktrail.services.service import AUDIT_FILE  # noqa: PLC0415 - the whole service; half a second

    lent: Path | None = None
    audit: Path | str = data / AUDIT_FILE
    try:
        if responder.find(data) is not None:
            with open_service(data, "", token_file, case) as service:
                audit = lent = Path(service.order("/snapshots", _Asked(), Lent).path)
    except Refused:
        raise
    except TasktrailError as error:
        audit = f"the running service does not lend a copy of its audit store ({error.message}); stop it to compare"
    try:
        yield audit
    finally:
        if lent is not None:
            lent.unlink(missing_ok=True)


class Bucket(msgspec.Struct, kw_only=True):
    """The bucket of current states as read: by reference, None for bytes that are no state. `position`: 0 for unknown.

    `held`: whether there is a bucket at all.
    """

    held: bool = True
    position: int = 0
    states: dict[str, State | None] = {}


async def read_states(nc: Client, stream: str) -> Bucket:
    """What the bucket holds that was built of the stream made at `stream` (its creation as text).

    Raises:
        Unavailable: as `read_bucket`.
    """
    bucket = await read_bucket(nc)
    if bucket is None:
        return Bucket(held=False)
    states = {ref: _state(body) for ref, body in bucket.states.items()}
    return Bucket(position=bucket.position if bucket.stream == stream else 0, states=states)


def _state(body: bytes) -> State | None:
    state = current.decode(body)
    return state if state is not None and current.encode(state) == body else None


class _States:
    """The bucket's states against the trail's, each as of where the bucket was."""

    def __init__(self, bucket: Bucket, last_seq: int) -> None:
        self._bucket = bucket
        self._last_seq = last_seq
        self._position = bucket.position or last_seq
        self._replay = Replay()
        self._ahead = {
            (ref, state.stream_seq)
            for ref, state in bucket.states.items()
            if state is not None and state.stream_seq > self._position
        }
        self._exact: dict[str, State] = {}
        self._wanted: dict[str, State] | None = None

    def take(self, messages: Sequence[Message]) -> None:
        """Fold; beyond the bucket's position, one by one, what the bucket has of it already is kept as it was then."""
        if messages[-1].stream_seq <= self._position:
            self._replay.take(messages)
            return
        for message in messages:
            if message.stream_seq > self._position and self._wanted is None:
                self._wanted = dict(self._replay.states)
            self._replay.take((message,))
            ref = ref_of(message.subject)
            if self._wanted is not None and (ref, message.stream_seq) in self._ahead and ref in self._replay.states:
                self._exact[ref] = self._replay.states[ref]

    def part(self) -> Part:
        """What was found."""
        if not self._bucket.held:
            why = "there is no bucket of current states; the service makes it again when it starts"
            return Part(what="current", not_compared=why)
        wanted = {**(self._replay.states if self._wanted is None else self._wanted), **self._exact}
        found = chain(self._place(), state_differences(self._bucket.states, wanted))
        return _part("current", self._bucket.position, len(wanted), found)

    def _place(self) -> Iterator[Difference]:
        if self._bucket.position > self._last_seq:
            yield Difference(
                where="current",
                field="position",
                live=value_text(self._bucket.position),
                replayed=value_text(self._last_seq),
            )


class _Rows:
    """The audit store's rows against those of the trail up to where the store is."""

    def __init__(self, live: Path | str, rebuilt: Path, trail: TrailReader) -> None:
        self._live, self._rebuilt, self._trail = Path(live), rebuilt, trail
        self._held = Position()
        self._store: AuditStore | None = None
        self._not_compared = live if isinstance(live, str) else ""
        if self._not_compared:
            return
        try:
            kept = AuditStore.open(live, read_only=True)
        except StoreBusy as busy:
            self._not_compared = f"{busy}; stop the service to have the audit store compared"
        except AuditStoreError as error:
            self._not_compared = str(error)
        else:
            self._held = kept.position()
            kept.close()
            self._store = AuditStore.open(rebuilt)
            self._store.bind(TRAIL, trail.created, trail.last_seq)

    def take(self, messages: Sequence[Message]) -> None:
        """Rebuild, up to where the store is."""
        if self._store is not None and messages[0].stream_seq <= self._held.last_seq:
            self._store.append([one for one in messages if one.stream_seq <= self._held.last_seq])

    def close(self) -> None:
        """Close the rebuilt store."""
        if self._store is not None:
            self._store.close()

    def part(self) -> Part:
        """What was found; call it when this is closed."""
        if self._store is None:
            return Part(what="audit", not_compared=self._not_compared)
        try:
            found = chain(self._place(), row_differences(self._live, self._rebuilt))
            return _part("audit", self._held.last_seq, min(self._held.last_seq, self._trail.last_seq), found)
        except AuditStoreError as error:
            return Part(what="audit", position=self._held.last_seq, not_compared=str(error))

    def _place(self) -> Iterator[Difference]:
        made = self._trail.created.astimezone(UTC).replace(tzinfo=None)
        if self._held.created is not None and self._held.created != made:
            yield Difference(
                where="position",
                field="stream_created",
                live=value_text(self._held.created),
                replayed=value_text(made),
            )


def _part(what: str, position: int, compared: int, found: Iterator[Difference]) -> Part:
    named = tuple(islice(found, DIFFERENCES_MAX))
    more = next(found, None) is not None
    return Part(what=what, position=position, compared=compared, differences=named, more=more)
