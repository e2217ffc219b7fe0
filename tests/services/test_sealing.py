"""Sealed payloads and the keys of tasks. Source: design section 7, features R1 R2, decisions (sealing)."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.js.api import ObjectMeta

from tasktrail.events.subjects import KEYS, key_subject, task_ref
from tasktrail.services.keyring import KEY_BYTES
from tasktrail.services.sealing import SealError, TaskKey, Vault
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Parts, parts

REF, OTHER = task_ref(b"k" * 32, "one"), task_ref(b"k" * 32, "other")
KEY = TaskKey(REF, b"1" * KEY_BYTES)


@pytest.mark.requirement("R1")
@given(st.text(max_size=10), st.text(max_size=10), st.binary(max_size=200))
@settings(deadline=None)
def test_what_is_sealed_opens_and_shows_nothing(name: str, scope: str, text: bytes) -> None:
    """AES-256-GCM; the commitment is the blob's digest, a keyed hash of the text, and a size."""
    commitment, blob = KEY.seal(name, scope, text)
    assert KEY.open(commitment, blob) == text
    assert (commitment.name, commitment.size) == (name, len(blob))
    assert commitment.sha256 == hashlib.sha256(blob).hexdigest()
    assert commitment.mac != hashlib.sha256(text).hexdigest()
    assert len(text) < 4 or text not in blob


@pytest.mark.requirement("R1")
def test_the_same_payload_of_the_same_command_gives_the_same_bytes_and_nothing_else_does() -> None:
    """Decisions: a retry leaves no orphan; different payloads never share a nonce."""
    sealed = KEY.seal("result", "entry", b"text")
    assert KEY.seal("result", "entry", b"text") == sealed
    others = [
        KEY.seal("error", "entry", b"text"),
        KEY.seal("result", "entry 2", b"text"),
        KEY.seal("result", "entry", b"other"),
        TaskKey(REF, b"2" * KEY_BYTES).seal("result", "entry", b"text"),
    ]
    nonces = {blob[:12] for _, blob in (sealed, *others)}
    assert len(nonces) == 5
    assert KEY.seal("re", "sultentry", b"text")[1][:12] != KEY.seal("result", "entry", b"text")[1][:12]


@pytest.mark.requirement("R1")
def test_a_short_text_cannot_be_guessed_from_its_commitment() -> None:
    """Design section 7: an HMAC under the task's key; the same text in two tasks has two."""
    yes, _ = KEY.seal("response.a", "entry", b'"yes"')
    same, _ = TaskKey(OTHER, b"2" * KEY_BYTES).seal("response.a", "entry", b'"yes"')
    again, _ = KEY.seal("response.a", "later", b'"yes"')
    assert yes.mac != same.mac
    assert yes.mac == again.mac, "within a task an unchanged status text is recognised by it"


@pytest.mark.requirement("R1")
def test_another_task_name_or_blob_is_refused() -> None:
    """The payload's name and task are associated data; the blob is the one committed to."""
    commitment, blob = KEY.seal("result", "entry", b"text")
    with pytest.raises(SealError, match="is not the one its entry commits to"):
        KEY.open(commitment, blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(SealError, match="is not the one its entry commits to"):
        KEY.open(KEY.seal("result", "entry 2", b"text")[0], blob)
    for key, changed in (
        (TaskKey(REF, b"2" * KEY_BYTES), commitment),
        (TaskKey(OTHER, b"1" * KEY_BYTES), commitment),
        (KEY, msgspec.structs.replace(commitment, name="error")),
    ):
        with pytest.raises(SealError, match="does not open under the task's key"):
            key.open(changed, blob)


def test_a_blob_too_short_to_be_one_is_refused() -> None:
    """Whatever lies in a bucket."""
    for blob in (b"", b"x" * 7, b"x" * 12, b"x" * 27):
        commitment = msgspec.structs.replace(
            KEY.seal("result", "entry", b"text")[0], sha256=hashlib.sha256(blob).hexdigest()
        )
        with pytest.raises(SealError, match="does not open"):
            KEY.open(commitment, blob)


# --- the vault ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Parts]:
    """Give a process."""
    async with parts(fresh_nats.url, tmp_path) as made:
        yield made


@pytest.mark.requirement("R1")
async def test_a_tasks_key_is_stored_before_it_is_used_and_is_one(one: Parts) -> None:
    """However often, and from however many processes, it is made."""
    vaults = [one.vault, *(Vault(one.js, one.keyring) for _ in range(5))]
    made = await asyncio.gather(*(vault.make(REF) for vault in vaults for _ in range(3)))
    commitment, blob = made[0].seal("result", "entry", b"text")
    assert {key.open(commitment, blob) for key in made} == {b"text"}
    assert (await Vault(one.js, one.keyring).key(REF)).open(commitment, blob) == b"text"
    assert (await one.js.stream_info(KEYS)).state.messages == 1


@pytest.mark.requirement("R1")
async def test_a_tasks_key_is_never_on_disk_as_it_is(one: Parts, fresh_nats: NatsServer) -> None:
    """It is wrapped by the key-encryption key, with the task as associated data."""
    await one.vault.make(REF)
    raw = one.keyring.unwrap((await one.js.get_last_msg(KEYS, key_subject(REF))).data or b"", REF)
    files = [path.read_bytes() for path in fresh_nats.store_dir.rglob("*") if path.is_file()]
    assert len(raw) == KEY_BYTES
    assert not any(raw in content or raw.hex().encode() in content for content in files)


@pytest.mark.requirement("R1", "R2")
async def test_with_its_key_destroyed_a_task_cannot_be_read_and_the_bytes_are_gone(
    one: Parts, fresh_nats: NatsServer
) -> None:
    """Design section 7: a KV overwrite or purge leaves the bytes on disk, a message delete leaves none."""
    await one.vault.make(REF)
    kept = await one.vault.make(OTHER)
    commitment, blob = kept.seal("result", "entry", b"text")
    wrapped = (await one.js.get_last_msg(KEYS, key_subject(REF))).data or b""

    def on_disk() -> bool:
        return any(wrapped in path.read_bytes() for path in fresh_nats.store_dir.rglob("*") if path.is_file())

    assert on_disk()
    await one.vault.destroy(REF)
    assert not on_disk()
    for vault in (one.vault, Vault(one.js, one.keyring)):
        with pytest.raises(SealError, match=f"task {REF}: its key was destroyed; its payloads cannot be read"):
            await vault.key(REF)
        assert (await vault.key(OTHER)).open(commitment, blob) == b"text"


@pytest.mark.requirement("R2")
async def test_every_copy_of_a_key_is_destroyed_and_the_mark_stays(one: Parts) -> None:
    """However the stream came to hold several, and however often it is done."""
    await one.vault.make(REF)
    await one.js.publish(key_subject(REF), (await one.js.get_last_msg(KEYS, key_subject(REF))).data or b"")
    vaults = [one.vault, *(Vault(one.js, one.keyring) for _ in range(4))]
    await asyncio.gather(*(vault.destroy(REF) for vault in vaults))
    await one.vault.destroy(REF)
    assert (await one.js.stream_info(KEYS)).state.messages == 1
    with pytest.raises(SealError, match="destroyed"):
        await Vault(one.js, one.keyring).make(REF)


@pytest.mark.requirement("R2")
async def test_what_another_process_destroyed_is_forgotten_when_it_is_told(one: Parts) -> None:
    """Also when the key is still on its way from the stream."""
    await one.vault.make(REF)
    other = Vault(one.js, one.keyring)
    await other.key(REF)
    other.forget(REF)
    with pytest.raises(SealError, match="destroyed"):
        await other.key(REF)
    late = Vault(one.js, one.keyring)
    reading = asyncio.create_task(late.key(REF))
    await asyncio.sleep(0)
    late.forget(REF)
    with pytest.raises(SealError, match="destroyed"):
        await reading


@pytest.mark.requirement("R1")
async def test_a_key_that_was_never_made_is_told_from_a_destroyed_one(one: Parts) -> None:
    """A lost stream is no shredding."""
    with pytest.raises(SealError, match=f"task {REF}: no key is held for it; its payloads cannot be read"):
        await one.vault.key(REF)


@pytest.mark.requirement("R1")
async def test_large_blobs_go_to_the_bucket_once_and_come_back_by_digest(one: Parts) -> None:
    """Design section 7: content-addressed, before the entry that commits to them."""
    key = await one.vault.make(REF)
    commitment, blob = key.seal("result", "entry", bytes(300_000))
    with pytest.raises(SealError, match="is not in the object bucket"):
        await one.vault.get(commitment)
    await asyncio.gather(*(one.vault.put(commitment, REF, blob) for _ in range(2)))
    await one.vault.put(commitment, REF, blob)
    assert key.open(commitment, await Vault(one.js, one.keyring).get(commitment)) == bytes(300_000)
    bucket = await one.js.object_store("PAYLOADS")
    assert [(info.name, info.description) for info in await bucket.list()] == [(commitment.sha256, REF)]


async def test_a_blob_of_another_digest_in_the_bucket_is_refused(one: Parts) -> None:
    """What the bucket holds is not trusted."""
    key = await one.vault.make(REF)
    commitment, blob = key.seal("result", "entry", b"text")
    bucket = await one.js.object_store("PAYLOADS")
    await bucket.put(commitment.sha256, blob[::-1], meta=ObjectMeta(description=REF))
    with pytest.raises(SealError, match="is not the one its entry commits to"):
        key.open(commitment, await one.vault.get(commitment))
