"""Both projections built again from a trail, apart from the services that keep them, and compared with what they keep.

Guarantees: reads every message of the trail itself and folds it with the pure code of `tasktrail.projections` alone;
each difference is one sentence. Needs a NATS user who may read the streams.

    book = Book()
    await book.read(nc)
    found = [*book.faults, *await current_differences(nc, book)]
    found += audit_differences(data / "audit.duckdb", book, scratch)     # of a stopped service
"""

import base64
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nats.aio.client import Client
from nats.js import JetStreamContext, api

from tasktrail.events.entry import KEY_ID, MSG_ID, SIGNATURE, Entry, decode, leaf_hash
from tasktrail.events.errors import TasktrailError
from tasktrail.events.subjects import TRAIL, kind_of, task_subject
from tasktrail.projections import current
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.current import State
from tasktrail.projections.replay_rows import in_words, row_differences
from tasktrail.services.bucket_reading import read_bucket
from tasktrail.services.fetching import fetch
from tasktrail.services.keyring import Keyring

FETCH = 1_000
APPEND = 777
_SHOWN_MAX = 20
_READ_S = 10.0


class Book:
    """A trail as read so far: its messages, its entries by id, and the states they fold to by task reference.

    `faults` holds what is wrong with it: holes, entries twice, broken chains.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.entries: dict[str, tuple[int, Entry]] = {}
        self.states: dict[str, State] = {}
        self.faults: list[str] = []
        self.created = datetime.fromtimestamp(0, UTC)

    @property
    def last_seq(self) -> int:
        """Stream sequence of the last message read."""
        return self.messages[-1].stream_seq if self.messages else 0

    async def read(self, nc: Client) -> int:
        """Read on to the trail's present end. Returns its sequence."""
        js = JetStreamContext(nc)
        info = await js.stream_info(TRAIL)
        self.created = info.created or self.created
        if info.state.num_deleted or (info.state.messages and info.state.first_seq != 1):
            self.faults.append(f"{info.state.num_deleted or 0} messages of the trail are deleted")
        for message in await _messages(js, TRAIL, self.last_seq + 1, info.state.last_seq):
            self._take(message)
        return info.state.last_seq

    def _take(self, message: Message) -> None:
        seq = message.stream_seq
        if seq != self.last_seq + 1:
            self.faults.append(f"the trail has no message {self.last_seq + 1}")
        self.messages.append(message)
        try:
            entry = decode(message.body)
            self._fold(message, entry)
        except TasktrailError as error:
            self.faults.append(f"message {seq}: {error}")
            return
        if entry.id in self.entries:
            self.faults.append(f"message {seq} holds entry {entry.id} again, as {self.entries[entry.id][0]} does")
        if message.msg_id != entry.id:
            self.faults.append(f"message {seq} has id {message.msg_id}, its entry {entry.id}")
        self.entries[entry.id] = seq, entry

    def _fold(self, message: Message, entry: Entry) -> None:
        if kind_of(message.subject) != "task":
            return
        if message.subject != task_subject(entry.tenant, entry.task_ref):
            self.faults.append(f"message {message.stream_seq} is on {message.subject}, of task {entry.task_ref}")
            return
        before, leaf = self.states.get(entry.task_ref), leaf_hash(message.body)
        self.states[entry.task_ref] = current.advance(before, entry, leaf, message.stream_seq)


async def _messages(js: JetStreamContext, stream: str, first: int, last: int) -> list[Message]:
    """The stream's messages from sequence `first` to `last`."""
    found: list[Message] = []
    if first > last:
        return found
    config = api.ConsumerConfig(
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=first,
        ack_policy=api.AckPolicy.NONE,
        inactive_threshold=_READ_S,
    )
    subscription = await js.pull_subscribe(">", stream=stream, config=config)
    try:
        while not found or found[-1].stream_seq < last:
            for one in await fetch(subscription, FETCH, timeout_s=_READ_S):
                headers = one.headers or {}
                found.append(
                    Message(
                        stream_seq=one.metadata.sequence.stream,
                        subject=one.subject,
                        body=one.data,
                        msg_id=headers.get(MSG_ID, ""),
                        key_id=headers.get(KEY_ID, ""),
                        signature=headers.get(SIGNATURE, ""),
                    )
                )
    finally:
        await subscription.unsubscribe()
    return [message for message in found if message.stream_seq <= last]


async def current_bucket(nc: Client) -> dict[str, bytes]:
    """What the bucket of current states holds, by task reference; empty when there is no bucket."""
    bucket = await read_bucket(nc)
    return bucket.states if bucket else {}


async def current_differences(nc: Client, book: Book) -> list[str]:
    """Where the bucket differs from the states of `book`, byte for byte."""
    held = await current_bucket(nc)
    wanted = {ref: current.encode(state) for ref, state in book.states.items()}
    found = [f"the bucket has no state of {ref}" for ref in wanted.keys() - held.keys()]
    found += [f"the bucket has a state of {ref}, the trail has none" for ref in held.keys() - wanted.keys()]
    for ref in wanted.keys() & held.keys():
        if held[ref] != wanted[ref]:
            found.append(f"the bucket's state of {ref} is not the trail's: {current.decode(held[ref])}")
    return found[:_SHOWN_MAX]


def forged(book: Book, data: Path, most: int) -> list[str]:
    """Which of `most` messages, evenly spread, are not signed by the key of this data directory."""
    keyring = Keyring.open(data)
    raw = base64.urlsafe_b64decode(keyring.public_key + "=")
    key = Ed25519PublicKey.from_public_bytes(raw)
    found: list[str] = []
    for message in book.messages[:: max(1, len(book.messages) // most)]:
        try:
            key.verify(base64.b64decode(message.signature), message.body)
        except InvalidSignature:
            found.append(f"message {message.stream_seq} is not signed by {keyring.kid}")
    return found


def audit_differences(kept: Path, book: Book, scratch: Path) -> list[str]:
    """Where an audit store that nobody holds open differs from one built from `book` in `scratch`, row for row."""
    rebuilt = scratch / "rebuilt.duckdb"
    rebuilt.unlink(missing_ok=True)
    store = AuditStore.open(kept, read_only=True)
    position = store.position().last_seq
    store.close()
    store = AuditStore.open(rebuilt)
    store.bind(TRAIL, book.created, position)
    held = [message for message in book.messages if message.stream_seq <= position]
    for start in range(0, len(held), APPEND):
        store.append(held[start : start + APPEND])
    store.close()
    found = [] if position == book.last_seq else [f"the audit store is at {position}, the trail at {book.last_seq}"]
    return found + [in_words(one) for one in row_differences(kept, rebuilt)]
