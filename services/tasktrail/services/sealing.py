"""Sealing: each task has a key of its own; payloads are ciphertext everywhere but in the hands of who may see them.

Guarantees: AES-256-GCM under a key derived (HKDF-SHA256) from the task's key, with the payload's name and task as
associated data; the nonce is derived from key, name, command and text, so that sealing the same payload for the same
command again gives the same bytes and two different payloads never share one. Task keys live wrapped in the stream
KEYS and never in the trail. Destroying a task's key makes every payload of it unreadable, for ever: its bytes are
overwritten where the stream keeps them, and a mark stays in their place, so that no new key is ever made for the task.

    key = await vault.make(ref)
    commitment, blob = key.seal("result", entry_id, plaintext)
    key.open(commitment, blob)
    await vault.destroy(ref)
"""

import asyncio
import contextlib
import hashlib
import hmac
import os
from collections import OrderedDict

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nats.js import JetStreamContext
from nats.js.api import ObjectMeta
from nats.js.errors import APIError, NotFoundError, ObjectNotFoundError
from nats.js.object_store import ObjectStore

from tasktrail.events.entry import EXPECTED, MSG_ID
from tasktrail.events.errors import TrailError
from tasktrail.events.facts import Commitment
from tasktrail.events.subjects import KEYS, PAYLOADS, framed, key_subject
from tasktrail.services.keyring import KEY_BYTES, Keyring

_NONCE_BYTES = 12
_WRONG_SEQUENCE = frozenset({10071, 10164})
_ANSWER_S = 1.0
_DESTROYED = b"destroyed\n"
_COPIES_MAX = 8
KEYS_CACHED = 8_192


class SealError(TrailError):
    """A sealed payload or its key is missing or does not open."""

    reason = "sealed"


class TaskKey:
    """One task's key, split into one for encryption and one for commitments."""

    def __init__(self, ref: str, raw: bytes) -> None:
        both = HKDF(algorithm=hashes.SHA256(), length=2 * KEY_BYTES, salt=None, info=b"tasktrail task key 1").derive(
            raw
        )
        self.ref = ref
        self._cipher = AESGCM(both[:KEY_BYTES])
        self._mac_key = both[KEY_BYTES:]

    def mac(self, plaintext: bytes) -> str:
        """What tells one text of this task from another, to who holds the key alone: HMAC-SHA256 in hex."""
        return hmac.digest(self._mac_key, plaintext, "sha256").hex()

    def seal(self, name: str, scope: str, plaintext: bytes) -> tuple[Commitment, bytes]:
        """Seal one payload; `scope` is the entry that will hold it. Returns its commitment and its blob."""
        mac = self.mac(plaintext)
        nonce = hmac.digest(self._mac_key, b"nonce\0" + framed(name, scope, mac), "sha256")[:_NONCE_BYTES]
        blob = nonce + self._cipher.encrypt(nonce, plaintext, framed(self.ref, name))
        return Commitment(name=name, sha256=hashlib.sha256(blob).hexdigest(), mac=mac, size=len(blob)), blob

    def open(self, commitment: Commitment, blob: bytes) -> bytes:
        """The payload's text.

        Raises:
            SealError: the blob is not the one committed to, or does not open under this key.
        """
        if hashlib.sha256(blob).hexdigest() != commitment.sha256:
            message = f"task {self.ref}: the sealed {commitment.name} is not the one its entry commits to"
            raise SealError(message)
        try:
            return self._cipher.decrypt(blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], framed(self.ref, commitment.name))
        except (InvalidTag, ValueError):
            message = f"task {self.ref}: the sealed {commitment.name} does not open under the task's key"
            raise SealError(message) from None


class Vault:
    """Task keys in the stream KEYS, and blobs too large for an entry in the object bucket PAYLOADS."""

    def __init__(self, js: JetStreamContext, keyring: Keyring) -> None:
        self._js = js
        self._keyring = keyring
        self._keys: OrderedDict[str, TaskKey] = OrderedDict()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._bucket: ObjectStore | None = None

    async def make(self, ref: str) -> TaskKey:
        """The key of a new task, stored before this returns; the stored one when it was made before.

        Raises:
            SealError: it was made before, and destroyed.
        """
        raw = os.urandom(KEY_BYTES)
        headers = {EXPECTED: "0", MSG_ID: f"key-{ref}"}
        try:
            wrapped = self._keyring.wrap(raw, ref)
            ack = await self._js.publish(key_subject(ref), wrapped, timeout=_ANSWER_S, headers=headers)
        except APIError as error:
            if error.err_code in _WRONG_SEQUENCE:
                return await self.key(ref)
            raise
        if ack.duplicate:
            return await self.key(ref)
        return self._keep(TaskKey(ref, raw))

    async def key(self, ref: str) -> TaskKey:
        """The key of an existing task.

        Raises:
            SealError: there is none: it was never made or has been destroyed.
        """
        kept = self._keys.get(ref)
        if kept is not None:
            self._keys.move_to_end(ref)
            return kept
        try:
            async with asyncio.timeout(_ANSWER_S):
                message = await self._js.get_last_msg(KEYS, key_subject(ref))
        except NotFoundError:
            text = f"task {ref}: no key is held for it; its payloads cannot be read"
            raise SealError(text) from None
        if message.data == _DESTROYED or ref in self._gone:
            text = f"task {ref}: its key was destroyed; its payloads cannot be read"
            raise SealError(text)
        return self._keep(TaskKey(ref, self._keyring.unwrap(message.data or b"", ref)))

    async def destroy(self, ref: str) -> None:
        """Destroy a task's key: its bytes in the stream are overwritten. Repeating it, after a failure or not, is safe.

        Needs KEYS without `deny_delete`. Other processes drop what they remember of it by `forget`. On a cluster the
        servers' replication log holds a copy until it is next compacted: some two minutes on a stream at rest.

        Raises:
            nats.errors.Error, TimeoutError: the stream does not answer; the key may still be there.
            SealError: the stream refuses; the key is still there.
        """
        self.forget(ref)
        refused = ""
        for _ in range(_COPIES_MAX):
            try:
                async with asyncio.timeout(_ANSWER_S):
                    first = await self._js.get_msg(KEYS, seq=1, subject=key_subject(ref), next=True)
            except NotFoundError:
                await self._mark_destroyed(ref)
                return
            if first.data == _DESTROYED:
                return
            try:  # nats-py leaves `no_erase` out: the server overwrites the bytes
                await self._js.delete_msg(KEYS, first.seq or 0)
            except APIError as error:  # another process was faster, or the stream refuses: the next look tells
                refused = str(error.description or error.code)
        text = f"task {ref}: its key is still in the stream {KEYS} ({refused or 'it has many copies'})"
        raise SealError(text)

    async def _mark_destroyed(self, ref: str) -> None:
        headers = {EXPECTED: "0", MSG_ID: f"destroyed-{ref}"}
        try:
            await self._js.publish(key_subject(ref), _DESTROYED, timeout=_ANSWER_S, headers=headers)
        except APIError as error:
            if error.err_code not in _WRONG_SEQUENCE:
                raise

    def forget(self, ref: str) -> None:
        """Drop a destroyed key from this process's memory."""
        self._keys.pop(ref, None)
        self._gone[ref] = None
        while len(self._gone) > KEYS_CACHED:
            self._gone.popitem(last=False)

    def _keep(self, key: TaskKey) -> TaskKey:
        self._keys[key.ref] = key
        while len(self._keys) > KEYS_CACHED:
            self._keys.popitem(last=False)
        return key

    async def _objects(self) -> ObjectStore:
        if self._bucket is None:
            self._bucket = await self._js.object_store(PAYLOADS)
        return self._bucket

    async def put(self, commitment: Commitment, ref: str, blob: bytes) -> None:
        """Store a blob under its digest, before the entry that commits to it."""
        objects = await self._objects()
        try:
            await objects.get_info(commitment.sha256)
        except ObjectNotFoundError:
            await objects.put(commitment.sha256, blob, meta=ObjectMeta(description=ref))

    async def get(self, commitment: Commitment) -> bytes:
        """The blob of this digest.

        Raises:
            SealError: it is not there.
        """
        objects = await self._objects()
        try:
            found = await objects.get(commitment.sha256)
        except (ObjectNotFoundError, NotFoundError):
            message = f"the sealed {commitment.name} {commitment.sha256[:16]}… is not in the object bucket"
            raise SealError(message) from None
        return found.data or b""

    async def remove(self, sha256: str) -> None:
        """Remove the blob of this digest, if the bucket has it."""
        objects = await self._objects()
        with contextlib.suppress(ObjectNotFoundError, NotFoundError):
            await objects.delete(sha256)
