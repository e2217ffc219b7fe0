"""The streams and buckets the service needs, what they must look like, and making them.

Guarantees: nothing is created or changed except by `create`, which an operator asks for (`tasktrail init`) or an
embedded start does in a directory without its marker; `differences` says what is missing or not as it should be.
CURRENT, TIMERS and WORK are disposable: they come back from the trail, so they may be made anew at any time.
Needs JetStream API level 4 (nats-server 2.14 or later).

    await create(js, replicas=1)
    problems = await differences(js)
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from nats.errors import TimeoutError as NatsTimeout
from nats.js import JetStreamContext, api
from nats.js.errors import BadRequestError, NotFoundError, ServiceUnavailableError

from tasktrail.events.subjects import CURRENT, GENERATION, KEYS, PAYLOADS, TIMERS, TRAIL, WORK

DUPLICATE_WINDOW_S = 120.0
"""How long JetStream knows a message id: well above the time the Ledger resolves an unconfirmed write."""

API_LEVEL = 4
CLUSTER_WITHIN_S = 30.0
"""How long a cluster that has only just begun may need to take streams with copies."""
_NO_PEERS = 10005  # of nats-server: too few nodes are there to place the copies on
_AGAIN_S = 0.2
KV_STREAM = f"KV_{CURRENT}"
OBJECT_STREAM = f"OBJ_{PAYLOADS}"


def desired(replicas: int = 1) -> dict[str, api.StreamConfig]:
    """Every stream by name as it should be; KV and object buckets are streams too."""
    file = api.StorageType.FILE
    return {
        TRAIL: api.StreamConfig(
            name=TRAIL,
            description="tasktrail: every entry, immutable",
            subjects=[f"trail.{GENERATION}.>"],
            storage=file,
            num_replicas=replicas,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW,
            duplicate_window=DUPLICATE_WINDOW_S,
            deny_delete=True,
            deny_purge=True,
            allow_direct=True,
        ),
        KEYS: api.StreamConfig(
            name=KEYS,
            description="tasktrail: wrapped keys of tasks; erasable",
            subjects=[f"keys.{GENERATION}.>"],
            storage=file,
            num_replicas=replicas,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW,
            discard_new_per_subject=False,
            duplicate_window=DUPLICATE_WINDOW_S,
            deny_delete=False,
            deny_purge=False,
            allow_direct=False,
        ),
        KV_STREAM: current_bucket(replicas),
        TIMERS: timers(replicas),
        WORK: work(replicas),
        OBJECT_STREAM: api.StreamConfig(
            name=OBJECT_STREAM,
            description="tasktrail: sealed payloads too large for an entry",
            subjects=[f"$O.{PAYLOADS}.C.>", f"$O.{PAYLOADS}.M.>"],
            storage=file,
            num_replicas=replicas,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW,
            allow_rollup_hdrs=True,
            allow_direct=True,
            duplicate_window=DUPLICATE_WINDOW_S,
        ),
    }


def current_bucket(replicas: int = 1) -> api.StreamConfig:
    """The bucket of current states: disposable, so it may be made again at any time."""
    return api.StreamConfig(
        name=KV_STREAM,
        description="tasktrail: current states, rebuilt from the trail when lost",
        subjects=[f"$KV.{CURRENT}.>"],
        storage=api.StorageType.FILE,
        num_replicas=replicas,
        retention=api.RetentionPolicy.LIMITS,
        max_msgs_per_subject=1,
        discard=api.DiscardPolicy.NEW,
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_direct=True,
        duplicate_window=DUPLICATE_WINDOW_S,
    )


def timers(replicas: int = 1) -> api.StreamConfig:
    """The stream of timers: message schedules (ADR-51) and what they fired, each gone when it was dealt with.

    It is apart from the trail because schedules switch `deny_purge` off. One message per subject, the latest: to
    publish a timer again is to move it. A work queue: a fired timer stays until somebody has acknowledged it.
    """
    return api.StreamConfig(
        name=TIMERS,
        description="tasktrail: timers of tasks, set again from the current states when lost",
        subjects=[f"timer.{GENERATION}.>"],
        storage=api.StorageType.FILE,
        num_replicas=replicas,
        retention=api.RetentionPolicy.WORK_QUEUE,
        max_msgs_per_subject=1,
        discard=api.DiscardPolicy.OLD,
        allow_msg_schedules=True,
        allow_msg_ttl=True,
        allow_direct=True,
        duplicate_window=DUPLICATE_WINDOW_S,
    )


def work(replicas: int = 1) -> api.StreamConfig:
    """The stream of work that waits for a worker: one message for each task, gone once somebody took it."""
    return api.StreamConfig(
        name=WORK,
        description="tasktrail: work that lost its worker, put again from the current states when lost",
        subjects=[f"work.{GENERATION}.>"],
        storage=api.StorageType.FILE,
        num_replicas=replicas,
        retention=api.RetentionPolicy.WORK_QUEUE,
        max_msgs_per_subject=1,
        discard=api.DiscardPolicy.OLD,
        allow_direct=True,
        duplicate_window=DUPLICATE_WINDOW_S,
    )


async def create(
    js: JetStreamContext, *, replicas: int = 1, only: frozenset[str] = frozenset(), within_s: float = 0.0
) -> list[str]:
    """Create the streams that do not exist (all, or those of `only`); existing ones are never touched. Names made.

    `within_s`: how long a cluster may need to take them, whose nodes do not know each other yet, elect, or are slow.

    Raises:
        nats.errors.Error: as nats-py says; what a cluster gets over only after `within_s`.
    """
    made: list[str] = []
    deadline = time.monotonic() + within_s
    for name, config in desired(replicas).items():
        if not only or name in only:
            made += [name] if await _made(js, name, config, deadline) else []
    return made


async def _made(js: JetStreamContext, name: str, config: api.StreamConfig, deadline: float) -> bool:
    """Whether there was no such stream; then there is one now. To make the same twice is no error."""
    try:
        await _patiently(lambda: js.stream_info(name), deadline)
    except NotFoundError:
        await _patiently(lambda: js.add_stream(config), deadline)
        return True
    return False


async def _patiently(ask: Callable[[], Awaitable[object]], deadline: float) -> None:
    """Ask until it is answered; what a cluster gets over is asked again until the deadline."""
    while True:
        try:
            await ask()
        except (NatsTimeout, ServiceUnavailableError, BadRequestError) as error:
            passes = not isinstance(error, BadRequestError) or error.err_code == _NO_PEERS
            if not passes or time.monotonic() > deadline:
                raise
            await asyncio.sleep(_AGAIN_S)
        else:
            return


_COMPARED = (
    "subjects",
    "storage",
    "retention",
    "discard",
    "deny_delete",
    "deny_purge",
    "max_msgs_per_subject",
    "allow_direct",
    "duplicate_window",
    "allow_msg_schedules",
    "allow_msg_ttl",
)
_LOST = {TRAIL: "entries", KEYS: "keys of tasks", TIMERS: "timers", WORK: "work that waits"}
_LIMITS = ("max_msgs", "max_bytes", "max_age")


async def differences(js: JetStreamContext, *, replicas: int | None = None) -> list[str]:
    """What is missing or not as it should be, one sentence each; empty when all is well. `replicas`: None for any."""
    found: list[str] = []
    for name, want in desired().items():
        try:
            have = (await js.stream_info(name)).config
        except NotFoundError:
            found.append(f"stream {name} is missing")
            continue
        found += [
            f"stream {name}: {field} is {_shown(getattr(have, field))}, should be {_shown(getattr(want, field))}"
            for field in _COMPARED
            if _value(getattr(have, field)) != _value(getattr(want, field))
        ]
        if replicas is not None and (have.num_replicas or 1) != replicas:
            found.append(f"stream {name}: num_replicas is {have.num_replicas}, {replicas} asked for")
        if name in _LOST:
            found += [
                f"stream {name}: {field} is {getattr(have, field)}, which would lose {_LOST[name]}; "
                "it should be unlimited"
                for field in _LIMITS
                if (getattr(have, field) or 0) > 0
            ]
    return found


def _value(raw: Any) -> Any:  # noqa: ANN401 - a configuration field of any type
    """A field as compared: enums by value, absent as the server's default."""
    value = getattr(raw, "value", raw)
    if isinstance(value, list):
        return sorted(value)
    return None if value in (False, 0, -1, "", None) else value


def _shown(raw: Any) -> str:  # noqa: ANN401 - see `_value`
    return str(getattr(raw, "value", raw))
