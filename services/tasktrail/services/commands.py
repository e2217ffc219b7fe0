"""The way in for connected MCP servers and any NATS client: request/reply on `tasktrail.cmd.<server>.<action>`.

Guarantees: every request gets an answer, a `{"ok": …}` or a `{"error": …}` with the fields of `messages.Failed`; bad
input is answered, never dropped; the server's name is the subject's, which NATS permissions can bind to a user, never
the body's.

    nats req tasktrail.cmd.reports.get '{"caller": …, "call": …, "task_id": "…"}'
"""

import logging

import msgspec
from faststream.nats import NatsBroker, NatsMessage

from tasktrail.events.errors import InvalidRequest, TasktrailError
from tasktrail.services import strict_json
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.desk import Desk
from tasktrail.services.bus import RAW
from tasktrail.services.messages import ACTIONS, COMMANDS, Failed

_log = logging.getLogger(__name__)

QUEUE = "tasktrail"
WORKERS = 64
ENVELOPE_BYTES = 64 * 1024
DEPTH_MAX = 128


def serve(bus: NatsBroker, desk: Desk, *, payload_max_bytes: int) -> None:
    """Register the endpoint on the bus."""

    async def answer(msg: NatsMessage) -> bytes:
        raw = msg.raw_message
        subject, body = getattr(raw, "subject", ""), getattr(raw, "data", b"")
        try:
            done = await _carry_out(desk, subject, body, payload_max_bytes + ENVELOPE_BYTES)
        except TasktrailError as error:
            return _encode({"error": failed(error)})
        except Exception:  # noqa: BLE001 - the caller gets an answer whatever happens; the log has the rest
            _log.exception("a request on %s failed", subject)
            return _encode({"error": failed(TasktrailError("internal error; the service's log has it"))})
        return _encode({"ok": done})

    bus.subscriber(f"{COMMANDS}.*.*", queue=QUEUE, max_workers=WORKERS, codec=RAW)(answer)


async def _carry_out(desk: Desk, subject: str, body: bytes, bytes_max: int) -> msgspec.Struct:
    server, _, action = subject.removeprefix(f"{COMMANDS}.").partition(".")
    kinds = ACTIONS.get(action)
    if kinds is None:
        message = f"no action {action!r}; the actions are {', '.join(sorted(ACTIONS))}"
        raise InvalidRequest(message)
    said = strict_json.decode(body, bytes_max=bytes_max, depth_max=DEPTH_MAX)
    try:
        request = msgspec.convert(said, kinds[0])
    except msgspec.ValidationError as error:
        message = f"{action}: {error}"
        raise InvalidRequest(message) from None
    return await desk.carry_out(action, request, Channel(server=server, in_process=False))


def failed(error: TasktrailError) -> Failed:
    """An error as the wire says it."""
    return Failed(
        reason=error.reason,
        message=error.message,
        code=error.code,
        retriable=error.retriable,
        written=error.written,
    )


def _encode(answer: dict[str, object]) -> bytes:
    return msgspec.json.encode(answer)
