"""JSON values in and out of a task's sealed payloads.

Guarantees: a value is encoded once, sealed under the task's key, and stored (in the entry or the object bucket) before
or with the entry that commits to it; a value larger than the maximum is refused before anything is written. The
commitment says which kinds of secrets the text shows (see `secrets`); the task id itself is not looked through.

    payload = await payloads.seal(key, "result", entry_id, value)
    value = await payloads.open(state, commitment)
"""

import asyncio
from typing import Any

import msgspec

from tasktrail.events.errors import InvalidRequest, TooLarge
from tasktrail.events.facts import Commitment
from tasktrail.projections.current import State
from tasktrail.services.access import secrets
from tasktrail.services.sealing import TaskKey, Vault
from tasktrail.services.settings import Settings

_encoder = msgspec.json.Encoder()
_HANDLE = "handle"
_AT_ONCE_BYTES = 64 * 1024


class Payloads:
    """Seals values for a command, opens them for who may see them."""

    def __init__(self, vault: Vault, settings: Settings) -> None:
        self.vault = vault
        self._settings = settings

    async def seal(self, key: TaskKey, name: str, scope: str, value: object) -> tuple[Commitment, dict[str, bytes]]:
        """The commitment to a value, and its blob by name when it travels in the entry.

        Raises:
            TooLarge: the value's JSON exceeds `payload_max_bytes`.
            InvalidRequest: the value is not JSON (lone surrogates, unsupported types).
        """
        text = encoded(name, value, self._settings.payload_max_bytes)
        commitment, blob = key.seal(name, scope, text)
        if name != _HANDLE and (flags := await _flags(text)):
            commitment = msgspec.structs.replace(commitment, flags=flags)
        if len(blob) <= self._settings.inline_max_bytes:
            return commitment, {name: blob}
        await self.vault.put(commitment, key.ref, blob)
        return commitment, {}

    async def open(self, state: State, commitment: Commitment) -> Any:  # noqa: ANN401 - any JSON value
        """The value committed to.

        Raises:
            SealError: it, or the task's key, is gone.
        """
        key = await self.vault.key(state.task_ref)
        blob = state.sealed.get(commitment.sha256)
        if blob is None:
            blob = await self.vault.get(commitment)
        return msgspec.json.decode(key.open(commitment, blob))


async def _flags(text: bytes) -> tuple[str, ...]:
    """The kinds of secrets in a text; a large one is looked through in a thread while others are served."""
    if len(text) <= _AT_ONCE_BYTES:
        return secrets.kinds(text)
    return await asyncio.to_thread(secrets.kinds, text)


def encoded(name: str, value: object, bytes_max: int) -> bytes:
    """The value's JSON; see `Payloads.seal` for what is refused."""
    try:
        text = _encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{name} is not JSON: {error}"
        raise InvalidRequest(message) from None
    if len(text) > bytes_max:
        message = (
            f"{name} has {len(text)} bytes of JSON, more than the maximum of {bytes_max}; send a reference instead"
        )
        raise TooLarge(message)
    return text
